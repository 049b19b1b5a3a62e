// The page: conversations at the left, the one that is open, and a panel at the right that shows the model at work, or settings.
import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { small } from "./chats";
import { Composer } from "./composer";
import { Engine } from "./engine";
import { Drop, Icon } from "./icons";
import { Messages } from "./messages";
import { Key, Settings } from "./settings";
import { Sidebar } from "./sidebar";
import { begin, changed, rename, send, state, stop, useChanges } from "./state";
import "./page.css";

const TRY = ["What is the capital of France?", "Write a short poem about the sea.", "Explain in two sentences why the sky is blue."];

function Welcome() {
  const { plan } = state;
  const m = plan?.model;
  return (
    <div class="welcome">
      <Drop />
      <h2>What shall we talk about?</h2>
      <p>
        {m ? (
          <>
            {m.name}
            {m.experts > 0 && `, ${m.layers} layers of ${m.experts} experts`}, on this server. Nothing leaves it.
          </>
        ) : (
          "Asking the server what it serves …"
        )}
      </p>
      <ul>
        {TRY.map((text) => (
          <li>
            <button type="button" disabled={!m || state.running !== null} onClick={() => send(text)}>
              {text}
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}

function Failed() {
  const failed = state.failure;
  if (!failed || (failed.chat !== null && failed.chat !== state.current.id)) return null;
  const { error, again } = failed;
  return (
    <div class="failure" role="alert">
      <p>{error.message}</p>
      {error.todo && <p class="todo">{error.todo}</p>}
      {error.status === 401 && <Key lead />}
      <div class="row">
        {again && error.status !== 401 && (
          <button
            type="button"
            class="button"
            onClick={() => {
              changed({ failure: null });
              again();
            }}
          >
            Try again
          </button>
        )}
        <button type="button" class="quiet" onClick={() => changed({ failure: null })}>
          Close
        </button>
      </div>
    </div>
  );
}

type Panel = "live" | "settings";

function Title() {
  const { current } = state;
  const [draft, set] = useState<string | null>(null);
  const known = state.chats.some((chat) => chat.id === current.id);
  if (draft !== null) {
    return (
      <input
        class="rename"
        aria-label="Name of the conversation"
        value={draft}
        ref={(field) => {
          if (field && document.activeElement !== field) field.select();
        }}
        onInput={(e) => set(e.currentTarget.value)}
        onBlur={() => (rename(current, draft), set(null))}
        onKeyDown={(e) => {
          if (e.key === "Enter") e.currentTarget.blur();
          if (e.key === "Escape") (e.stopPropagation(), set(null));
        }}
      />
    );
  }
  return (
    <h1 title={known ? "Double-click renames it" : undefined} onDblClick={() => known && set(current.title)}>
      {current.title}
    </h1>
  );
}

/** Whether there is room for a panel beside the conversation. */
function useWide(query: string): boolean {
  const [wide, set] = useState(matchMedia(query).matches);
  useEffect(() => {
    const of = matchMedia(query);
    const hear = () => set(of.matches);
    of.addEventListener("change", hear);
    return () => of.removeEventListener("change", hear);
  }, [query]);
  return wide;
}

function App() {
  useChanges();
  const roomy = useWide("(min-width: 1100px)");
  const listed = useWide("(min-width: 780px)");
  const [panel, setPanel] = useState<Panel | null>(roomy && small.get("panel") !== "none" ? "live" : null);
  const [list, setList] = useState(false);
  const back = useRef<HTMLElement | null>(null);
  const show = (to: Panel | null) => {
    if (roomy) small.set("panel", to ?? "none");
    if (to && !panel) back.current = document.activeElement as HTMLElement | null;
    setPanel(to);
    if (!to) setTimeout(() => back.current?.focus());
  };
  useEffect(() => {
    const hear = (e: KeyboardEvent) => {
      if (e.key !== "Escape" || e.defaultPrevented) return;
      if (list && !listed) setList(false);
      else if (panel && !roomy) show(null);
      else if (state.running) stop();
    };
    document.addEventListener("keydown", hear);
    return () => document.removeEventListener("keydown", hear);
  });
  const title = state.current.messages.length > 0 ? `${state.current.title} · Dollop` : "Dollop";
  useEffect(() => void (document.title = title), [title]);
  const covered = (panel !== null && !roomy) || (list && !listed);
  return (
    <div class="page" data-panel={panel !== null} data-list={list || listed}>
      <aside class="side" aria-label="Conversations" inert={!listed && !list}>
        <Sidebar done={() => setList(false)} />
      </aside>
      <main inert={covered}>
        <header>
          {!listed && (
            <button type="button" class="tool" aria-label="Conversations" aria-expanded={list} onClick={() => setList(true)}>
              <Icon name="menu" />
            </button>
          )}
          <Title />
          <button type="button" class="tab" aria-pressed={panel === "settings"} onClick={() => show(panel === "settings" ? null : "settings")}>
            <Icon name="dials" /> <span>Settings</span>
          </button>
          <button type="button" class="tab" aria-pressed={panel === "live"} onClick={() => show(panel === "live" ? null : "live")}>
            <Icon name="pulse" /> <span>Live</span>
          </button>
        </header>
        <div class="scroll">
          {state.current.messages.length === 0 && state.ready && <Welcome />}
          <Messages />
        </div>
        <div class="foot">
          <Failed />
          <Composer openSettings={() => show("settings")} />
        </div>
      </main>
      <aside class="panel" aria-label={panel === "settings" ? "Settings" : "The model at work"} inert={panel === null}>
        {panel && (
          <>
            <header>
              <h2>{panel === "settings" ? "Settings" : "The model at work"}</h2>
              <button type="button" class="tool" aria-label="Close the panel" onClick={() => show(null)}>
                <Icon name="close" />
              </button>
            </header>
            <div class="inside" tabIndex={-1}>
              {panel === "settings" ? <Settings /> : <Engine />}
            </div>
          </>
        )}
      </aside>
      {covered && <div class="cover" onClick={() => (setList(false), panel && !roomy && show(null))} />}
      <div class="toast" role="status">
        {state.toast && (
          <p>
            {state.toast.text}
            {state.toast.undo && (
              <button type="button" class="quiet" onClick={() => (state.toast?.undo?.(), changed({ toast: null }))}>
                Undo
              </button>
            )}
          </p>
        )}
      </div>
      <p class="unseen" role="status">
        {state.spoken}
      </p>
    </div>
  );
}

render(<App />, document.getElementById("app")!);
void begin();
