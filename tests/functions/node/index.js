// Functions that do what their event says, for the integration tests.
"use strict";

exports.handler = (event, context, callback) => {
  const action = event && typeof event === "object" ? actions[event.do] : undefined;
  return (action ?? echo)(event, context, callback);
};

const echo = async (event) => event;

class Refused extends Error {
  constructor(message) {
    super(message);
    this.name = "Refused";
  }
}

const actions = {
  echo,

  callback(event, context, callback) {
    context.callbackWaitsForEmptyEventLoop = false;
    setTimeout(() => callback(null, "called back"), 1);
  },

  async fail() {
    throw new TypeError("this handler fails");
  },

  refuse() {
    return Promise.reject(new Refused("it was refused"));
  },

  async facts(event, context) {
    return {
      functionName: context.functionName,
      memory: context.memoryLimitInMB,
      remaining: context.getRemainingTimeInMillis(),
      tenantId: context.tenantId ?? null,
      version: process.version,
      task: process.cwd(),
    };
  },
};

// Answers in pieces, with a pause before each but the first.
exports.stream = globalThis.awslambda.streamifyResponse(async (event, stream, context) => {
  stream.setContentType("text/plain");
  for (let piece = 0; piece < event.pieces; piece += 1) {
    if (piece > 0) {
      await new Promise((resolve) => setTimeout(resolve, event.pause));
    }
    stream.write(`piece ${piece}\n`);
  }
  stream.end();
});
