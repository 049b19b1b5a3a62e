// The panel "Settings": what a conversation's requests say. What is left empty is as the model's file says.
import { useState } from "preact/hooks";
import { hasKey, setKey } from "./api";
import { again } from "./live";
import { changed, learn, settings, state } from "./state";

const NUMBERS: [name: string, label: string, hint: string][] = [
  ["temperature", "Temperature", "0 takes the likeliest token; more is more varied"],
  ["top_p", "Top-p", "tokens that together have this probability"],
  ["top_k", "Top-k", "this many of the likeliest tokens; 0 is all"],
  ["min_p", "Min-p", "tokens at least this part as likely as the best"],
  ["repeat_penalty", "Repeat penalty", "more than 1 avoids what was said lately"],
  ["presence_penalty", "Presence penalty", "avoids tokens that were used at all"],
  ["frequency_penalty", "Frequency penalty", "avoids tokens by how often they were used"],
  ["seed", "Seed", "the same seed gives the same answer"],
  ["max_tokens", "Longest answer", "in tokens; empty: as long as the context has room"],
];

const PRECISE = '{\n  "type": "object",\n  "properties": {\n    "city": { "type": "string" },\n    "people": { "type": "integer" }\n  },\n  "required": ["city", "people"]\n}';

function own(name: string): string {
  const value = state.plan?.sampling[name];
  return typeof value === "number" && name !== "seed" ? String(Math.round(value * 1000) / 1000) : "";
}

export function Key({ lead }: { lead: boolean }) {
  const [value, type] = useState("");
  const [keep, setKeep] = useState(false);
  const use = (e: Event) => {
    e.preventDefault();
    setKey(value, keep);
    type("");
    changed({ failure: null });
    again();
    void learn();
  };
  return (
    <form class="key" onSubmit={use}>
      <label for={lead ? "key-asked" : "key"}>API key</label>
      <div class="row">
        <input
          id={lead ? "key-asked" : "key"}
          type="password"
          autocomplete="off"
          placeholder={hasKey() ? "one is in use" : "as the server was given it"}
          value={value}
          onInput={(e) => type(e.currentTarget.value)}
        />
        <button class="button" type="submit">
          Use
        </button>
      </div>
      <label class="check">
        <input type="checkbox" checked={keep} onChange={(e) => setKeep(e.currentTarget.checked)} /> Keep it in this browser
      </label>
    </form>
  );
}

function wrong(schema: string): string {
  if (!schema.trim()) return "";
  try {
    JSON.parse(schema);
    return "";
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

export function Settings() {
  const of = state.current.settings;
  const number = (name: string, value: string) => settings({ numbers: { ...of.numbers, [name]: value } });
  const bad = of.format === "schema" ? wrong(of.schema) : "";
  return (
    <div class="settings">
      <section>
        <label for="system">System prompt</label>
        <textarea
          id="system"
          rows={3}
          value={of.system}
          placeholder="Who the model is, and how it answers. Of this conversation."
          onInput={(e) => settings({ system: e.currentTarget.value })}
        />
      </section>
      <section>
        <fieldset class="format">
          <legend>Answers are</legend>
          {(
            [
              ["text", "Text"],
              ["json", "Any JSON"],
              ["schema", "JSON Schema"],
            ] as const
          ).map(([value, label]) => (
            <label class={of.format === value ? "choice chosen" : "choice"}>
              <input
                type="radio"
                name="format"
                value={value}
                checked={of.format === value}
                onChange={() => settings({ format: value, schema: value === "schema" && !of.schema.trim() ? PRECISE : of.schema })}
              />
              {label}
            </label>
          ))}
        </fieldset>
        {of.format === "schema" && (
          <>
            <label for="schema">Schema that answers obey</label>
            <textarea
              id="schema"
              class="mono"
              rows={9}
              spellcheck={false}
              value={of.schema}
              aria-invalid={bad !== ""}
              aria-describedby="schema-said"
              onInput={(e) => settings({ schema: e.currentTarget.value })}
            />
            <p id="schema-said" class={bad ? "note bad" : "note"} role="status">
              {bad || "The server masks every token that would break it."}
            </p>
          </>
        )}
      </section>
      <section>
        <h3>Sampling</h3>
        <div class="numbers">
          {NUMBERS.map(([name, label, hint]) => (
            <div>
              <label for={`n-${name}`} title={hint}>
                {label}
              </label>
              <input
                id={`n-${name}`}
                inputmode="decimal"
                autocomplete="off"
                title={hint}
                placeholder={own(name)}
                value={of.numbers[name] ?? ""}
                onInput={(e) => number(name, e.currentTarget.value)}
              />
            </div>
          ))}
          <div>
            <label for="effort">Thinking</label>
            <select id="effort" value={of.effort} onChange={(e) => settings({ effort: e.currentTarget.value })}>
              <option value="">the model's own</option>
              <option value="none">off</option>
              <option value="low">low</option>
              <option value="medium">medium</option>
              <option value="high">high</option>
            </select>
          </div>
        </div>
        <label for="stop-texts">Stop texts, one a line</label>
        <textarea id="stop-texts" class="mono" rows={2} spellcheck={false} value={of.stop} onInput={(e) => settings({ stop: e.currentTarget.value })} />
        <button class="quiet" type="button" onClick={() => settings({ numbers: {}, stop: "", effort: "" })}>
          Back to the model's own
        </button>
      </section>
      <section>
        <h3>Server</h3>
        <Key lead={false} />
        <p class="note">
          Nothing on this page leaves your browser but to this server. <a href="/page.licences.txt">Licences</a>
        </p>
      </section>
    </div>
  );
}
