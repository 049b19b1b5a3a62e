// The list of conversations: open, rename, delete.
import { useEffect, useRef, useState } from "preact/hooks";
import type { Chat } from "./chats";
import { small } from "./chats";
import { Drop, Icon } from "./icons";
import { blank, open, remove, rename, state, useChanges } from "./state";

const DAY = 86_400_000;

function day(time: number): string {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY) return "Yesterday";
  if (time >= today - 7 * DAY) return "This week";
  return "Earlier";
}

function Line({ chat, done }: { chat: Chat; done: () => void }) {
  const [draft, set] = useState<string | null>(null);
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.select(), [draft === null]);
  if (draft !== null) {
    const leave = (keep: boolean) => {
      if (keep) rename(chat, draft);
      set(null);
    };
    return (
      <li>
        <input
          ref={field}
          class="rename"
          aria-label="Name of the conversation"
          value={draft}
          onInput={(e) => set(e.currentTarget.value)}
          onBlur={() => leave(true)}
          onKeyDown={(e) => {
            if (e.key === "Enter") leave(true);
            if (e.key === "Escape") {
              e.stopPropagation();
              leave(false);
            }
          }}
        />
      </li>
    );
  }
  const here = state.current.id === chat.id;
  return (
    <li class={here ? "line here" : "line"}>
      <button
        type="button"
        class="title"
        aria-current={here ? "page" : undefined}
        onClick={() => {
          open(chat);
          done();
        }}
      >
        {state.running?.chat === chat.id && <span class="dots" aria-label="answering" role="img" />}
        {chat.title}
      </button>
      <button type="button" class="tool" aria-label={`Rename ${chat.title}`} title="Rename" onClick={() => set(chat.title)}>
        <Icon name="edit" />
      </button>
      <button type="button" class="tool" aria-label={`Delete ${chat.title}`} title="Delete" onClick={() => remove(chat)}>
        <Icon name="trash" />
      </button>
    </li>
  );
}

const THEMES = ["auto", "light", "dark"] as const;
type Theme = (typeof THEMES)[number];

function readTheme(): Theme {
  return THEMES.find((theme) => theme === small.get("theme")) ?? "auto";
}

export function wear(theme: Theme): void {
  document.documentElement.dataset["theme"] = theme;
  document.dispatchEvent(new Event("theme"));
}

wear(readTheme());

function Theme() {
  const [theme, set] = useState(readTheme());
  const choose = (to: Theme) => {
    small.set("theme", to);
    set(to);
    wear(to);
  };
  return (
    <div class="themes" role="radiogroup" aria-label="Colours">
      {THEMES.map((one) => (
        <button
          type="button"
          role="radio"
          aria-checked={theme === one}
          aria-label={one === "auto" ? "As the system" : one === "light" ? "Light" : "Dark"}
          title={one === "auto" ? "As the system" : one === "light" ? "Light" : "Dark"}
          tabIndex={theme === one ? 0 : -1}
          onClick={() => choose(one)}
          onKeyDown={(e) => {
            const step = e.key === "ArrowRight" ? 1 : e.key === "ArrowLeft" ? 2 : 0;
            if (step === 0) return;
            const to = THEMES[(THEMES.indexOf(one) + step) % 3]!;
            choose(to);
            const all = e.currentTarget.parentElement!.children;
            (all[THEMES.indexOf(to)] as HTMLElement).focus();
          }}
        >
          <Icon name={one} />
        </button>
      ))}
    </div>
  );
}

export function Sidebar({ done }: { done: () => void }) {
  useChanges();
  const { chats, plan, keeps, ready } = state;
  let last = "";
  return (
    <>
      <div class="brand">
        <Drop />
        <strong>Dollop</strong>
        <button type="button" class="tool close" aria-label="Close" onClick={done}>
          <Icon name="close" />
        </button>
      </div>
      <button
        type="button"
        class="new"
        onClick={() => {
          open(blank());
          done();
        }}
      >
        <Icon name="plus" /> New conversation
      </button>
      <nav aria-label="Conversations">
        {chats.length === 0 && ready && <p class="note">Conversations are kept here, in this browser.</p>}
        <ul>
          {chats.map((chat) => {
            const of = day(chat.updated);
            const head = of !== last && <li class="day">{of}</li>;
            last = of;
            return [head, <Line key={chat.id} chat={chat} done={done} />];
          })}
        </ul>
      </nav>
      {!keeps && (
        <p class="note bad" role="status">
          This browser keeps nothing for this page: conversations are gone when it is closed.
        </p>
      )}
      <footer>
        <div class="model">
          <b>{plan?.model.name ?? "…"}</b>
          {/* Without the size of the cache, which the slider changes. */}
          <span>{plan?.note ?? plan?.model.mode.replace(/, cache of.*/, "") ?? ""}</span>
        </div>
        <Theme />
      </footer>
    </>
  );
}
