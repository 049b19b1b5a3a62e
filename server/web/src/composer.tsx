// Where a message is written, sent, and its answer stopped.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Icon } from "./icons";
import { send, state, stop, useChanges } from "./state";

export function Composer({ openSettings }: { openSettings: () => void }) {
  useChanges();
  const [text, set] = useState("");
  const field = useRef<HTMLTextAreaElement>(null);
  const { current, running } = state;
  useEffect(() => {
    set("");
    // A keyboard would cover half of a phone.
    if (matchMedia("(pointer: fine)").matches) field.current?.focus();
  }, [current.id]);
  useLayoutEffect(() => {
    const of = field.current!;
    of.style.height = "auto";
    of.style.height = `${of.scrollHeight}px`;
  }, [text]);
  const go = () => {
    if (!text.trim() || running) return;
    send(text);
    set("");
  };
  const chips = [
    current.settings.system.trim() && "System prompt",
    current.settings.format === "schema" && "JSON Schema",
    current.settings.format === "json" && "JSON",
    Object.values(current.settings.numbers).some((n) => n.trim()) && "Sampling",
  ].filter((chip) => chip !== false && chip !== "");
  return (
    <form
      class="composer"
      onSubmit={(e) => {
        e.preventDefault();
        go();
      }}
    >
      <div class="field">
        <textarea
          ref={field}
          rows={1}
          aria-label="Message"
          aria-describedby="keys"
          placeholder={running && running.chat !== current.id ? "Another conversation is being answered" : "Write a message"}
          value={text}
          onInput={(e) => set(e.currentTarget.value)}
          onKeyDown={(e) => {
            if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
              e.preventDefault();
              go();
            } else if (e.key === "ArrowUp" && text === "" && !running) {
              const edits = document.querySelectorAll<HTMLElement>(".asked [aria-label=Edit]");
              const last = edits[edits.length - 1];
              if (last) {
                e.preventDefault();
                last.click();
              }
            }
          }}
        />
        {running ? (
          <button type="button" class="send stop" onClick={stop} aria-label="Stop" title="Stop (Esc)">
            <Icon name="stop" />
          </button>
        ) : (
          <button type="submit" class="send" disabled={!text.trim()} aria-label="Send" title="Send (Enter)">
            <Icon name="send" />
          </button>
        )}
      </div>
      <div class="below">
        {chips.map((chip) => (
          <button type="button" class="chip" onClick={openSettings}>
            {chip}
          </button>
        ))}
        <span id="keys">Enter sends · Shift+Enter breaks the line · Esc stops</span>
      </div>
    </form>
  );
}
