// The conversation: questions, answers as they come, and what can be done with them.
import { memo } from "preact/compat";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Answer, Message, Reply } from "./chats";
import { Icon } from "./icons";
import { Rendering } from "./markdown";
import { edit, pieces, regenerate, show, shown, state, useChanges } from "./state";

/** Milliseconds between two drawings of an answer, at least; long answers get fewer, so that drawing takes a tenth of the time. */
const REST = 40;

function usePieces(): void {
  const [, again] = useState(0);
  useEffect(() => {
    let [timer, asked] = [0, false];
    const hear = () => {
      if (asked) return;
      asked = true;
      timer = window.setTimeout(() => {
        asked = false;
        again((n) => n + 1);
      }, 200);
    };
    pieces.add(hear);
    return () => {
      clearTimeout(timer);
      pieces.delete(hear);
    };
  }, []);
}

/** An answer's Markdown. While it is written the element is filled without Preact. */
function Text({ answer, live }: { answer: Answer; live: boolean }) {
  const root = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const rendering = new Rendering(root.current!);
    let [timer, rest] = [0, REST];
    const draw = () => {
      timer = 0;
      const start = performance.now();
      rendering.show(answer.text, !live);
      rest = Math.max(REST, 10 * (performance.now() - start));
    };
    draw();
    if (!live) return;
    const hear = () => {
      timer ||= window.setTimeout(draw, rest);
    };
    pieces.add(hear);
    return () => {
      clearTimeout(timer);
      pieces.delete(hear);
    };
  }, [answer, live]);
  return <div class="markdown" ref={root} />;
}

function Json({ answer, live }: { answer: Answer; live: boolean }) {
  let text = answer.text;
  if (!live) {
    try {
      text = JSON.stringify(JSON.parse(text), null, 2);
    } catch {
      // It was cut off.
    }
  }
  return (
    <pre class="json" tabIndex={0}>
      {text}
    </pre>
  );
}

function Live({ answer, json }: { answer: Answer; json: boolean }) {
  usePieces();
  return json ? <Json answer={answer} live /> : null;
}

function Thought({ answer, live }: { answer: Answer; live: boolean }) {
  usePieces();
  if (!answer.thought) return null;
  const seconds = (answer.thinking / 1000).toFixed(1);
  return (
    <details class="thought">
      <summary>{live && !answer.text ? "Thinking …" : `Thought for ${seconds} s`}</summary>
      <div>{answer.thought}</div>
    </details>
  );
}

function Copy({ text }: { text: () => string }) {
  const [done, set] = useState(false);
  return (
    <button
      type="button"
      class="tool"
      aria-label={done ? "Copied" : "Copy"}
      title={done ? "Copied" : "Copy"}
      onClick={async () => {
        await copy(text());
        set(true);
        setTimeout(() => set(false), 1500);
      }}
    >
      <Icon name={done ? "done" : "copy"} />
    </button>
  );
}

/** Browsers have no clipboard where a page comes by plain HTTP from another machine: a selection does it there. */
export async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function Asked({ message, busy }: { message: Message & { role: "user" }; busy: boolean }) {
  const [draft, set] = useState<string | null>(null);
  const field = useRef<HTMLTextAreaElement>(null);
  const button = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    if (draft === null) return;
    field.current?.focus();
    field.current?.setSelectionRange(draft.length, draft.length);
  }, [draft === null]);
  if (draft !== null) {
    const leave = () => {
      set(null);
      setTimeout(() => button.current?.focus());
    };
    const done = () => {
      if (!draft.trim()) return;
      leave();
      edit(message.id, draft);
    };
    return (
      <article class="asked editing" aria-label="You">
        <textarea
          ref={field}
          aria-label="Edit the message"
          value={draft}
          onInput={(e) => set(e.currentTarget.value)}
          onKeyDown={(e) => {
            if (e.key === "Escape") {
              e.stopPropagation();
              leave();
            } else if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
              e.preventDefault();
              done();
            }
          }}
        />
        <div class="row">
          <button type="button" class="quiet" onClick={leave}>
            Cancel
          </button>
          <button type="button" class="button" onClick={done} disabled={busy || !draft.trim()}>
            Send again
          </button>
        </div>
      </article>
    );
  }
  return (
    <article class="asked" aria-label="You">
      <div class="said">{message.text}</div>
      <div class="tools">
        <button ref={button} type="button" class="tool" aria-label="Edit" title="Edit" disabled={busy} onClick={() => set(message.text)}>
          <Icon name="edit" />
        </button>
        <Copy text={() => message.text} />
      </div>
    </article>
  );
}

function Versions({ reply, busy }: { reply: Reply; busy: boolean }) {
  const n = reply.versions.length;
  if (n < 2) return null;
  const go = (to: number) => show(state.current.id, reply.id, to);
  return (
    <span class="versions">
      <button type="button" class="tool" aria-label="Earlier answer" disabled={busy || reply.shown === 0} onClick={() => go(reply.shown - 1)}>
        <Icon name="left" />
      </button>
      <span>
        {reply.shown + 1} / {n}
      </span>
      <button type="button" class="tool" aria-label="Later answer" disabled={busy || reply.shown === n - 1} onClick={() => go(reply.shown + 1)}>
        <Icon name="right" />
      </button>
    </span>
  );
}

function took(answer: Answer): string {
  const words = [];
  if (answer.tokens > 0) words.push(`${answer.tokens} tokens`);
  if (answer.tokens > 1 && answer.seconds > 0) words.push(`${((answer.tokens - 1) / answer.seconds).toFixed(1)} tok/s`);
  if (answer.first > 0) words.push(`first after ${answer.first.toFixed(answer.first < 10 ? 2 : 0)} s`);
  if (answer.ended === "length") words.push("cut off at the longest answer");
  if (answer.ended === "stopped") words.push("stopped");
  if (answer.ended === "failed") words.push("broke off");
  return words.join(" · ");
}

function Answered({ reply, live, busy, last }: { reply: Reply; live: boolean; busy: boolean; last: boolean }) {
  const answer = shown(reply);
  return (
    <article class="answered" aria-label="Answer" aria-busy={live} data-ended={answer.ended}>
      <Thought answer={answer} live={live} />
      {answer.json ? live ? <Live answer={answer} json /> : <Json answer={answer} live={false} /> : <Text answer={answer} live={live} />}
      {live ? (
        <p class="doing">
          <span class="dots" aria-hidden="true" />
          {state.running?.state === "waiting" ? "Reading" : state.running?.state === "thinking" ? "Thinking" : ""}
        </p>
      ) : (
        <div class="tools">
          {answer.text && <Copy text={() => answer.text} />}
          {last && (
            <button type="button" class="tool" aria-label="Answer again" title="Answer again" disabled={busy} onClick={regenerate}>
              <Icon name="again" />
            </button>
          )}
          <Versions reply={reply} busy={busy} />
          <span class="took">{took(answer)}</span>
        </div>
      )}
    </article>
  );
}

interface Row {
  message: Message;
  live: boolean;
  busy: boolean;
  last: boolean;
  /** What is drawn anew when it changes, beside the message. */
  doing: string;
}

const Row = memo(({ message, live, busy, last }: Row) =>
  message.role === "user" ? <Asked message={message} busy={busy} /> : <Answered reply={message} live={live} busy={busy} last={last} />,
);

export function Messages() {
  useChanges();
  const { current, running } = state;
  const bottom = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const [away, setAway] = useState(false);
  const box = () => bottom.current!.parentElement!;
  const down = () => {
    follows.current = true;
    box().scrollTop = box().scrollHeight;
  };
  useLayoutEffect(down, [current.id, current.messages.length]);
  useEffect(() => {
    const of = box();
    // It follows the answer until its reader scrolls away.
    const look = () => {
      follows.current = of.scrollHeight - of.scrollTop - of.clientHeight < 60;
      setAway(!follows.current);
    };
    const grown = new ResizeObserver(() => follows.current && (of.scrollTop = of.scrollHeight));
    grown.observe(bottom.current!.previousElementSibling!);
    of.addEventListener("scroll", look, { passive: true });
    return () => {
      grown.disconnect();
      of.removeEventListener("scroll", look);
    };
  }, []);
  const own = running?.chat === current.id ? running : null;
  return (
    <>
      <div
        class="messages"
        role="log"
        aria-live="off"
        aria-label="Conversation"
        onClick={(e) => {
          const button = (e.target as Element).closest<HTMLElement>("[data-copy]");
          if (!button) return;
          void copy(button.closest(".code")?.querySelector("pre")?.textContent ?? "");
          button.textContent = "Copied";
          setTimeout(() => (button.textContent = "Copy"), 1500);
        }}
      >
        {current.messages.map((message, i) => {
          const live = own?.reply === message.id;
          const last = i === current.messages.length - 1;
          return <Row key={message.id} message={message} live={live} busy={running !== null} last={last} doing={live ? own!.state : ""} />;
        })}
      </div>
      <div class="bottom" ref={bottom}>
        {away && (
          <button type="button" class="to-end" onClick={down} aria-label="To the latest" title="To the latest">
            <Icon name="down" />
          </button>
        )}
      </div>
    </>
  );
}
