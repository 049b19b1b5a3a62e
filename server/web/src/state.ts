// What the page knows, and what can be done: conversations, the answer that is being written, messages to the user.
import { useEffect, useState } from "preact/hooks";
import { Failure, events, json } from "./api";
import { type Answer, type Chat, type Message, PLAIN, type Reply, type Settings } from "./chats";
import { dropChat, loadChats, newId, readSettings, saveChat, small } from "./chats";

/** Of `/v1/plan`. */
export interface Plan {
  model: { name: string; architecture: string; layers: number; experts: number; experts_used: number; mode: string; backend: string };
  memory: { levels: { bits: number }[]; context: number };
  sampling: Record<string, unknown>;
  note: string | null;
}

export interface Running {
  chat: string;
  reply: string;
  abort: AbortController;
  /** What it is doing, for the line below the answer. */
  state: "waiting" | "thinking" | "writing";
}

interface State {
  ready: boolean;
  chats: Chat[];
  current: Chat;
  running: Running | null;
  plan: Plan | null;
  /** What failed last, and what is tried again by its button. */
  failure: { error: Failure; chat: string | null; again: (() => void) | null } | null;
  /** A sentence at the bottom, perhaps with a way back. */
  toast: { text: string; undo: (() => void) | null } | null;
  /** Whether this browser keeps conversations. */
  keeps: boolean;
  needsKey: boolean;
  /** For screen readers: whole sentences, not tokens. */
  spoken: string;
}

function lastSettings(): Settings {
  try {
    return readSettings(JSON.parse(small.get("settings") ?? "{}"));
  } catch {
    return PLAIN;
  }
}

export function blank(): Chat {
  return { id: newId(), title: "New conversation", named: false, updated: 0, messages: [], settings: lastSettings() };
}

export const state: State = {
  ready: false,
  chats: [],
  current: blank(),
  running: null,
  plan: null,
  failure: null,
  toast: null,
  keeps: true,
  needsKey: false,
  spoken: "",
};

const heard = new Set<() => void>();
/** Called with each piece of an answer, which are too many to draw everything anew. */
export const pieces = new Set<() => void>();

export function changed(change: Partial<State> = {}): void {
  Object.assign(state, change);
  heard.forEach((hear) => hear());
}

export function useChanges(): void {
  const [, again] = useState(0);
  useEffect(() => {
    const hear = () => again((n) => n + 1);
    heard.add(hear);
    return () => void heard.delete(hear);
  }, []);
}

export async function begin(): Promise<void> {
  try {
    const chats = await loadChats();
    const last = chats.find((chat) => chat.id === small.get("current"));
    changed({ chats, current: last ?? state.current });
  } catch {
    changed({ keeps: false });
  }
  changed({ ready: true });
  await learn();
}

/** Asks the server what it serves. */
export async function learn(): Promise<void> {
  try {
    const plan = await json<Plan>("/v1/plan");
    changed({ plan, needsKey: false, failure: state.failure?.chat === null ? null : state.failure });
  } catch (error) {
    fail(error, null, () => void learn());
  }
}

function fail(error: unknown, chat: string | null, again: (() => void) | null): void {
  const failure = error instanceof Failure ? error : new Failure(String(error), 0, null, "Load the page again.");
  changed({ failure: { error: failure, chat, again }, needsKey: state.needsKey || failure.status === 401 });
}

export function toast(text: string, undo: (() => void) | null = null): void {
  const shown = { text, undo };
  changed({ toast: shown });
  setTimeout(() => state.toast === shown && changed({ toast: null }), 8000);
}

/** Another version of a conversation takes its place, here and in the browser. */
export function update(id: string, change: (chat: Chat) => Partial<Chat>, keep = true): void {
  const all = state.chats.some((chat) => chat.id === id) ? state.chats : [state.current, ...state.chats];
  let next: Chat | undefined;
  const chats = all.map((chat) => (chat.id === id ? (next = { ...chat, ...change(chat) }) : chat));
  if (!next) return;
  if (state.current.id === id) state.current = next;
  changed({ chats: chats.sort((a, b) => b.updated - a.updated) });
  if (keep) save(next);
}

function save(chat: Chat): void {
  saveChat(chat).catch(() => state.keeps && changed({ keeps: false }));
}

export function open(chat: Chat): void {
  small.set("current", chat.id);
  changed({ current: chat, failure: state.failure?.chat === null ? state.failure : null });
}

export function rename(chat: Chat, title: string): void {
  const named = title.trim();
  if (named) update(chat.id, () => ({ title: named.slice(0, 200), named: true }));
}

export function remove(chat: Chat): void {
  if (state.running?.chat === chat.id) stop();
  const chats = state.chats.filter((other) => other.id !== chat.id);
  changed({ chats, current: state.current.id === chat.id ? blank() : state.current });
  dropChat(chat.id).catch(() => {});
  toast(`“${chat.title}” was deleted.`, () => {
    changed({ chats: [...state.chats, chat].sort((a, b) => b.updated - a.updated), current: chat });
    save(chat);
  });
}

export function settings(change: Partial<Settings>): void {
  const next = { ...state.current.settings, ...change };
  // A system prompt belongs to its conversation.
  small.set("settings", JSON.stringify({ ...next, system: "" }));
  if (state.chats.some((chat) => chat.id === state.current.id)) update(state.current.id, () => ({ settings: next }));
  else changed({ current: { ...state.current, settings: next } });
}

export const shown = (reply: Reply): Answer => reply.versions[reply.shown]!;

export function show(chat: string, reply: string, version: number): void {
  const one = (m: Message) => (m.id === reply && m.role === "assistant" ? { ...m, shown: version } : m);
  update(chat, (of) => ({ messages: of.messages.map(one) }));
}

export function stop(): void {
  state.running?.abort.abort();
}

/** Sends what was typed. */
export function send(text: string): void {
  const chat = state.current;
  const title = chat.named || chat.messages.length > 0 ? chat.title : text.trim().replace(/\s+/g, " ").slice(0, 60);
  small.set("current", chat.id);
  ask(chat.id, [...chat.messages, { id: newId(), role: "user", text }], { title });
}

/** Another text for a question; what followed it goes, and can be brought back. */
export function edit(question: string, text: string): void {
  const before = state.current;
  const at = before.messages.findIndex((m) => m.id === question);
  if (at < 0) return;
  if (at < before.messages.length - 2) toast("What followed was removed.", () => (stop(), update(before.id, () => before)));
  ask(before.id, [...before.messages.slice(0, at), { id: question, role: "user", text }], {});
}

/** Another answer in the place of the last: the earlier ones stay beside it. */
export function regenerate(): void {
  const { id, messages } = state.current;
  const last = messages.at(-1);
  if (last?.role === "assistant") ask(id, messages.slice(0, -1), {}, last);
  else if (last) ask(id, messages, {});
}

function ask(id: string, messages: Message[], more: Partial<Chat>, before?: Reply): void {
  if (state.running) return;
  const json = state.current.settings.format !== "text";
  const answer: Answer = { text: "", thought: "", thinking: 0, tokens: 0, first: 0, seconds: 0, ended: "", json };
  const versions = [...(before?.versions ?? []).filter((v) => v.text || v.thought), answer];
  const reply: Reply = { id: before?.id ?? newId(), role: "assistant", versions, shown: versions.length - 1 };
  const running: Running = { chat: id, reply: reply.id, abort: new AbortController(), state: "waiting" };
  update(id, () => ({ ...more, messages: [...messages, reply], updated: Date.now() }));
  changed({ running, failure: null, spoken: "Answering." });
  void listen(running, state.current, messages, answer);
}

/** The body of a request. What was left empty is not said: the model's own holds. */
function body(settings: Settings, messages: Message[]): Record<string, unknown> {
  const said: { role: string; content: string }[] = [];
  for (const m of messages) {
    if (m.role === "user") said.push({ role: m.role, content: m.text });
    else if (shown(m).text) said.push({ role: m.role, content: shown(m).text });
    // A question without an answer: templates want them in turns.
    else said.pop();
  }
  const system = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  const all: Record<string, unknown> = { messages: [...system, ...said], stream: true, stream_options: { include_usage: true } };
  for (const [name, value] of Object.entries(settings.numbers)) {
    // What is no number is sent as it is: the server says what it must be.
    if (value.trim()) all[name] = Number.isNaN(Number(value)) ? value : Number(value);
  }
  const stops = settings.stop.split("\n").filter((line) => line !== "");
  if (stops.length > 0) all["stop"] = stops;
  if (settings.effort) all["reasoning_effort"] = settings.effort;
  if (settings.format === "json") all["response_format"] = { type: "json_object" };
  if (settings.format === "schema") {
    let schema: unknown;
    try {
      schema = JSON.parse(settings.schema);
    } catch (error) {
      const what = `The JSON Schema is no valid JSON: ${error instanceof Error ? error.message : error}`;
      throw new Failure(what, 400, null, "Correct it under Settings, then try again.");
    }
    all["response_format"] = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  }
  return all;
}

/** Hears an answer to its end. The answer grows in place; it is drawn by who listens to `pieces`. */
async function listen(running: Running, chat: Chat, messages: Message[], answer: Answer): Promise<void> {
  const start = performance.now();
  let [first, saved] = [0, start];
  let failed: unknown = null;
  try {
    for await (const event of events("/v1/chat/completions", body(chat.settings, messages), running.abort.signal)) {
      const now = performance.now();
      const choice = event.choices?.[0];
      const { content, reasoning_content: thought } = choice?.delta ?? {};
      if (content || thought) {
        if (first === 0) first = now;
        answer.tokens += 1;
        answer.text += content ?? "";
        answer.thought += thought ?? "";
        if (thought) answer.thinking = now - start;
        const doing = answer.text ? "writing" : "thinking";
        if (running.state !== doing) [running.state] = [doing, changed()];
      }
      if (choice?.finish_reason) answer.ended = choice.finish_reason === "length" ? "length" : "stop";
      if (event.usage) answer.tokens = event.usage.completion_tokens;
      answer.first = first ? (first - start) / 1000 : 0;
      answer.seconds = first ? (now - first) / 1000 : 0;
      pieces.forEach((hear) => hear());
      if (now - saved > 3000) [saved] = [now, update(running.chat, () => ({}))];
    }
    answer.ended ||= "stop";
  } catch (error) {
    answer.ended = running.abort.signal.aborted ? "stopped" : "failed";
    if (answer.ended === "failed") failed = error;
  }
  const left = state.chats.find((c) => c.id === running.chat);
  changed({ running: null, spoken: spoken(answer) });
  // A conversation that was deleted meanwhile does not come back.
  if (left) update(running.chat, (of) => ({ messages: of.messages.map((m) => (m.id === running.reply ? { ...m } : m)) }));
  if (failed) fail(failed, running.chat, () => regenerate());
}

/** What a screen reader says at the end. Long answers are in the page to be read. */
function spoken(answer: Answer): string {
  if (answer.ended === "failed") return "";
  const how = answer.ended === "stopped" ? "Stopped." : "Answered.";
  return answer.text.length > 600 ? `${how} ${answer.text.slice(0, 600)} … and more.` : `${how} ${answer.text}`;
}
