// Text files -> the words to be spoken: any common encoding, and Markdown without its marks. Knows no view.

/** The text of a file; without a byte order mark and no UTF-8, it is taken for Chinese in GB 18030. @param {ArrayBuffer} data */
export function decodeText(data) {
  const [first, second] = new Uint8Array(data.slice(0, 2));
  if ((first === 0xff && second === 0xfe) || (first === 0xfe && second === 0xff)) {
    return new TextDecoder(first === 0xff ? "utf-16le" : "utf-16be").decode(data);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(data);
  } catch {
    return new TextDecoder("gb18030").decode(data);
  }
}

/** Where characters that a backslash protects wait until the marks are gone. */
const PRIVATE = 0xe000;
const INLINE = [
  [/<!--[^]*?-->/g, ""],
  [/<\/?[a-z][^<>\n]*>/gi, ""],
  [/!\[([^\]\n]*)\]\([^()\n]*\)/g, "$1"], // images
  [/\[\^[^\]\n]+\](?!:)/g, ""], // footnotes
  [/\[([^\]\n]+)\](?:\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)|\[[^\]\n]*\])/g, "$1"], // links
  [/<(https?:[^<>\s]+)>/g, "$1"],
  [/(\*\*\*|\*\*|\*|~~|==)(?=\S)((?:(?!\n\n)[^])*?\S)\1/g, "$2"],
  [/(?<![\p{L}\p{N}])(___|__|_)(?=\S)([^\n]*?\S)\1(?![\p{L}\p{N}])/gu, "$2"],
  [/(`+)\s?([^`\n]+?)\s?\1/g, "$2"],
];

/** Markdown without its marks: headings, emphasis, links, lists, quotes, tables. Words stay as they are. */
export function withoutMarkdown(text) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/^---\n[^]*?\n---\n/, "").split("\n");
  let fence = "";
  const kept = lines.map((line) => {
    const mark = line.match(/^\s*(`{3,}|~{3,})/)?.[1];
    if (mark && (!fence || mark.startsWith(fence))) {
      fence = fence ? "" : mark;
      return null;
    }
    return fence ? line : block(line);
  });
  let plain = kept.filter((line) => line !== null).join("\n");
  plain = plain.replace(/\\([\\`*_{}[\]()#+.!|>~-])/g, (_, mark) => String.fromCharCode(PRIVATE + mark.charCodeAt(0)));
  for (const [mark, words] of INLINE) plain = plain.replace(mark, words);
  plain = plain.replace(/[\ue000-\ue07f]/g, (mark) => String.fromCharCode(mark.charCodeAt(0) - PRIVATE));
  return plain.replace(/\n{3,}/g, "\n\n").trim();
}

/** A line outside of code, without what makes it a heading, a list, a quote or a table; null for one that is only marks. */
function block(line) {
  if (/^\s*([-*_=])(\s*\1){2,}\s*$/.test(line)) return null; // rules and underlined headings
  if (/^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(line) && line.includes("|")) return null;
  if (/^\s*\[(?!\^)[^\]]+\]:\s*\S+/.test(line)) return null; // where links lead
  const plain = line
    .replace(/^(\s*>)+\s?/, "")
    .replace(/^\s*\[\^[^\]]+\]:\s*/, "")
    .replace(/^\s{0,3}#{1,6}\s+(.*?)\s*#*\s*$/, "$1")
    .replace(/^\s*[-*+]\s+(\[[ xX]\]\s+)?/, "");
  return /^\s*\|.*\|\s*$/.test(plain) ? plain.split("|").map((cell) => cell.trim()).filter(Boolean).join(", ") : plain;
}
