// Markdown as it comes: finished blocks are made once, the last one anew until the next begins. Nothing in it can run or fetch.
//
// HTML in an answer is shown as text, pictures become links, and what is left passes DOMPurify. The page's Content-Security-Policy
// holds where all of that should fail.
import DOMPurify, { type Config } from "dompurify";
import { Marked, type Token } from "marked";

const escapes: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text: string) => text.replace(/[&<>"']/g, (c) => escapes[c]!);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escape(text),
    image: ({ href, text }) => `<a href="${escape(href)}">picture: ${escape(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const TAGS = "p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code strong em del a table thead tbody tr th td";

const CLEAN: Config = {
  ALLOWED_TAGS: TAGS.split(" "),
  ALLOWED_ATTR: ["href", "title", "align", "start", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_TRUSTED_TYPE: true,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  // Classes of the page must not be worn by an answer.
  const name = node.getAttribute("class");
  if (name && !/^language-[\w+#.-]{1,30}$/.test(name)) node.removeAttribute("class");
});

/** Beyond this a block that is still being written is shown as plain text. */
const LONGEST_LIVE = 50_000;

function fill(element: HTMLElement, tokens: Token[], raw: string): void {
  try {
    element.innerHTML = DOMPurify.sanitize(marked.parser(tokens), CLEAN) as unknown as string;
  } catch {
    // Thousands of nested quotes, for example.
    plain(element, raw);
  }
}

function plain(element: HTMLElement, raw: string): void {
  const pre = document.createElement("div");
  pre.className = "plain";
  pre.textContent = raw;
  element.replaceChildren(pre);
}

/** A bar above each block of code, with its language and a button that copies it. */
function dress(element: HTMLElement): void {
  for (const pre of element.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    const bar = document.createElement("div");
    bar.className = "code-bar";
    const name = document.createElement("span");
    name.textContent = code?.className.replace("language-", "") || "text";
    const copy = document.createElement("button");
    copy.type = "button";
    copy.className = "quiet";
    copy.dataset["copy"] = "";
    copy.textContent = "Copy";
    bar.append(name, copy);
    const box = document.createElement("div");
    box.className = "code";
    pre.tabIndex = 0;
    pre.replaceWith(box);
    box.append(bar, pre);
  }
  for (const table of element.querySelectorAll("table")) {
    const box = document.createElement("div");
    box.className = "table";
    box.tabIndex = 0;
    table.replaceWith(box);
    box.append(table);
  }
}

/** A text that grows, in an element. */
export class Rendering {
  private text = "";
  /** Where the block begins that is not finished. */
  private from = 0;
  private last: HTMLElement | null = null;

  constructor(private readonly root: HTMLElement) {
    root.replaceChildren();
  }

  show(given: string, finished: boolean): void {
    const text = given.includes("\r") ? given.replace(/\r\n?/g, "\n") : given;
    if (!text.startsWith(this.text)) {
      this.root.replaceChildren();
      [this.from, this.last] = [0, null];
    }
    this.text = text;
    let tokens: Token[];
    const rest = text.slice(this.from);
    try {
      if (!finished && rest.length > LONGEST_LIVE && !rest.includes("\n\n")) throw new Error("later");
      tokens = marked.lexer(rest);
    } catch {
      this.last ??= this.block();
      plain(this.last, rest);
      return;
    }
    // An empty line does not end a list: only the next block does.
    let end = tokens.length;
    if (!finished) {
      end = tokens.findLastIndex((token) => token.type !== "space");
    }
    for (const token of tokens.slice(0, Math.max(0, end))) {
      this.from += token.raw.length;
      if (token.type === "space") continue;
      const block = this.last ?? this.block();
      this.last = null;
      fill(block, [token], token.raw);
      dress(block);
    }
    const open = tokens.slice(Math.max(0, end));
    if (open.length > 0 && open.some((token) => token.type !== "space")) {
      this.last ??= this.block();
      const raw = open.map((token) => token.raw).join("");
      if (raw.length > LONGEST_LIVE) plain(this.last, raw);
      else fill(this.last, open, raw);
    } else if (this.last) {
      this.last.remove();
      this.last = null;
    }
  }

  private block(): HTMLElement {
    const block = document.createElement("div");
    block.className = "block";
    this.root.append(block);
    return block;
  }
}
