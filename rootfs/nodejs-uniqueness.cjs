// Gives this process random numbers of its own after every restore, before anybody draws one. The
// states of its generators are in the snapshot, the same for all:
//
// * OpenSSL's, behind node:crypto and TLS, is watched over by uniqueness.node.
// * Math.random keeps its state within V8, where nothing can renew it. So it is another
//   generator here (xoshiro128+), with a state that can.
// * node:crypto keeps what it has drawn ahead for randomUUID and randomInt: that is used up.
"use strict";

const crypto = require("node:crypto");
const { syncBuiltinESMExports } = require("node:module");
const current = new Uint32Array(require("./uniqueness.node").life);

/** Says once in each life of the machine that it is another one. */
function watch() {
  const seen = current.slice();
  return () => {
    if (
      current[0] === seen[0] && current[1] === seen[1] &&
      current[2] === seen[2] && current[3] === seen[3]
    ) {
      return false;
    }
    seen.set(current);
    return true;
  };
}

const isNewLife = watch();
const state = new Int32Array(4);
crypto.randomFillSync(state);

function bits() {
  const result = (state[0] + state[3]) >>> 0;
  const shifted = state[1] << 9;
  state[2] ^= state[0];
  state[3] ^= state[1];
  state[1] ^= state[2];
  state[0] ^= state[3];
  state[2] ^= shifted;
  state[3] = (state[3] << 11) | (state[3] >>> 21);
  return result;
}

const replaced = {
  random() {
    if (isNewLife()) {
      crypto.randomFillSync(state);
    }
    // 53 bits, as many as a number has; the lowest of each draw are the weakest.
    return ((bits() >>> 5) * 0x4000000 + (bits() >>> 6)) / 0x20000000000000;
  },
};

/** Replaces a function that draws up to `count` results ahead. */
function renewing(name, count, draw) {
  const original = crypto[name];
  const isNew = watch();
  let used = false;
  const renewed = function (...given) {
    if (isNew() && used) {
      for (let drawn = 0; drawn < count; drawn += 1) {
        draw(original);
      }
    }
    used = true;
    return original.apply(this, given);
  };
  replace(crypto, name, renewed, original);
  return renewed;
}

function replace(owner, name, by, original = owner[name]) {
  for (const key of ["name", "length"]) {
    Object.defineProperty(by, key, { value: original[key], configurable: true });
  }
  const as = Object.getOwnPropertyDescriptor(owner, name);
  Object.defineProperty(owner, name, { ...as, value: by });
}

replace(Math, "random", replaced.random);
renewing("randomInt", 1024, (original) => original(2));
const randomUUID = renewing("randomUUID", 128, (original) => original());
replace(Object.getPrototypeOf(crypto.webcrypto), "randomUUID", { randomUUID() { return randomUUID(); } }.randomUUID);
syncBuiltinESMExports();
