// What a text has: words, the most frequent of them, and a hash.
import { createHash } from "node:crypto";

export const handler = async (event, context) => {
  if (typeof event.text !== "string") {
    throw new TypeError("the event has no text");
  }
  const words = event.text.toLocaleLowerCase("en").match(/\p{L}+/gu) ?? [];
  const counts = new Map();
  for (const word of words) {
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const top = [...counts].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1)).slice(0, 3);
  console.log(`${words.length} words`);
  return {
    words: words.length,
    top,
    sha256: createHash("sha256").update(event.text).digest("hex"),
    function: context.functionName,
  };
};
