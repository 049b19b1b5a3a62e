// Conversations, and where the browser keeps them: IndexedDB. Where that is broken or forbidden they last as long as the page.

export interface Answer {
  text: string;
  thought: string;
  /** Milliseconds of thinking. */
  thinking: number;
  tokens: number;
  /** Seconds to the first token, and from there to the end. */
  first: number;
  seconds: number;
  /** "" while it is written. */
  ended: "" | "stop" | "length" | "stopped" | "failed";
  /** Written under a schema: shown as JSON. */
  json: boolean;
}

export interface Question {
  id: string;
  role: "user";
  text: string;
}

export interface Reply {
  id: string;
  role: "assistant";
  /** One for each time it was generated. */
  versions: Answer[];
  shown: number;
}

export type Message = Question | Reply;

/** Numbers are kept as they were typed: what is empty is the model's own. */
export interface Settings {
  system: string;
  numbers: Record<string, string>;
  stop: string;
  format: "text" | "json" | "schema";
  schema: string;
  effort: string;
}

export interface Chat {
  id: string;
  title: string;
  /** Whether its user named it. */
  named: boolean;
  updated: number;
  messages: Message[];
  settings: Settings;
}

export const PLAIN: Settings = { system: "", numbers: {}, stop: "", format: "text", schema: "", effort: "" };

export function newId(): string {
  // Not `randomUUID`: there is none where the page is opened by plain HTTP from another machine.
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (b) => b.toString(36).padStart(2, "0")).join("");
}

const text = (x: unknown): string => (typeof x === "string" ? x : "");
const number = (x: unknown): number => (typeof x === "number" && Number.isFinite(x) ? x : 0);

function readAnswer(x: any): Answer {
  return {
    text: text(x?.text),
    thought: text(x?.thought),
    thinking: number(x?.thinking),
    tokens: number(x?.tokens),
    first: number(x?.first),
    seconds: number(x?.seconds),
    // One that was being written when the page was closed.
    ended: ["stop", "length", "failed"].includes(x?.ended) ? x.ended : "stopped",
    json: x?.json === true,
  };
}

export function readSettings(x: any): Settings {
  const numbers: Record<string, string> = {};
  if (x?.numbers && typeof x.numbers === "object") {
    for (const [name, value] of Object.entries(x.numbers)) numbers[name] = text(value);
  }
  const format = ["json", "schema"].includes(x?.format) ? x.format : "text";
  return { system: text(x?.system), numbers, stop: text(x?.stop), format, schema: text(x?.schema), effort: text(x?.effort) };
}

/** What was stored, if it makes sense: it may be of another version, or damaged. */
export function readChat(x: any): Chat | null {
  if (!x || typeof x !== "object" || !text(x.id) || !Array.isArray(x.messages)) return null;
  const messages: Message[] = [];
  for (const m of x.messages) {
    const id = text(m?.id) || newId();
    if (m?.role === "user") messages.push({ id, role: "user", text: text(m.text) });
    if (m?.role === "assistant" && Array.isArray(m.versions) && m.versions.length > 0) {
      const versions = m.versions.map(readAnswer);
      const shown = Math.min(Math.max(0, Math.trunc(number(m.shown))), versions.length - 1);
      messages.push({ id, role: "assistant", versions, shown });
    }
  }
  const settings = readSettings(x.settings);
  return { id: x.id, title: text(x.title) || "Conversation", named: x.named === true, updated: number(x.updated), messages, settings };
}

let opening: Promise<IDBDatabase | null> | null = null;

function open(): Promise<IDBDatabase | null> {
  opening ??= new Promise((resolve) => {
    try {
      const asked = indexedDB.open("dollop", 1);
      asked.onupgradeneeded = () => asked.result.createObjectStore("chats", { keyPath: "id" });
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => resolve(null);
      asked.onblocked = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
  return opening;
}

async function within(mode: IDBTransactionMode, work: (store: IDBObjectStore) => IDBRequest): Promise<unknown> {
  const base = await open();
  if (!base) throw new Error("this browser keeps nothing for this page");
  return new Promise((resolve, reject) => {
    const transaction = base.transaction("chats", mode);
    const asked = work(transaction.objectStore("chats"));
    transaction.oncomplete = () => resolve(asked.result);
    transaction.onerror = () => reject(transaction.error ?? new Error("storage failed"));
    transaction.onabort = () => reject(transaction.error ?? new Error("storage failed"));
  });
}

/** All conversations, the latest first. */
export async function loadChats(): Promise<Chat[]> {
  const all = (await within("readonly", (store) => store.getAll())) as unknown[];
  const chats = all.map(readChat).filter((chat) => chat !== null);
  return chats.sort((a, b) => b.updated - a.updated);
}

export async function saveChat(chat: Chat): Promise<void> {
  await within("readwrite", (store) => store.put(chat));
}

export async function dropChat(id: string): Promise<void> {
  await within("readwrite", (store) => store.delete(id));
}

/** Small things, such as the theme. Losing them is no harm. */
export const small = {
  get(name: string): string | null {
    try {
      return localStorage.getItem(`dollop.${name}`);
    } catch {
      return null;
    }
  },
  set(name: string, value: string): void {
    try {
      localStorage.setItem(`dollop.${name}`, value);
    } catch {
      // Then it is as at first the next time.
    }
  },
};
