// Functions that do what their event says, for the integration tests.
"use strict";

const crypto = require("node:crypto");
const { Duplex } = require("node:stream");
const tls = require("node:tls");

// The first bytes of a TLS connection: random numbers and the client's key shares.
function tlsHello() {
  return new Promise((resolve) => {
    const outgoing = new Duplex({
      read() {},
      write(hello, encoding, done) {
        // RFC 8446, 4.1.2: a record's head of 5 bytes, a message's of 4, a version of 2.
        resolve({
          random: hello.subarray(11, 43).toString("hex"),
          session: hello.subarray(44, 44 + hello[43]).toString("hex"),
        });
        done();
      },
    });
    tls.connect({ socket: outgoing, servername: "localhost" }).on("error", () => {});
  });
}

async function draw() {
  const { publicKey } = crypto.generateKeyPairSync("ec", { namedCurve: "P-256" });
  return {
    random: Math.random(),
    bytes: crypto.randomBytes(16).toString("hex"),
    uuid: crypto.randomUUID(),
    webUuid: crypto.webcrypto.randomUUID(),
    webValues: Buffer.from(crypto.webcrypto.getRandomValues(new Uint8Array(16))).toString("hex"),
    int: crypto.randomInt(2 ** 47),
    key: publicKey.export({ type: "spki", format: "der" }).toString("hex"),
    tls: await tlsHello(),
  };
}

// While the function is initialised: each generator has a state from here on, and it is in the
// snapshot.
const born = draw();

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

  async draw(event) {
    const drawn = await draw();
    await new Promise((resolve) => setTimeout(resolve, event.pause));
    return { ...drawn, born: await born };
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
