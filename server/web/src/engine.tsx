// The panel "Live": rates over time, memory and its budget, all experts.
import { useEffect, useRef, useState } from "preact/hooks";
import { Failure, json } from "./api";
import { LEVELS, Picture } from "./experts";
import { type Event, type Memory, type Series, live, onLive } from "./live";
import { state } from "./state";

export function size(bytes: number): string {
  if (bytes < 999.5e6) return `${(bytes / 1e6).toFixed(bytes < 9.95e6 ? 1 : 0)} MB`;
  return `${(bytes / 1e9).toFixed(bytes < 9.95e9 ? 2 : 1)} GB`;
}

function Spark({ series, least }: { series: Series; least: number }) {
  const most = Math.max(least, ...series.filter((v) => v !== null));
  const [w, h] = [160, 28];
  let path = "";
  let down = false;
  series.forEach((value, i) => {
    const x = w - (series.length - 1 - i);
    if (value === null) down = false;
    else {
      path += `${down ? "L" : "M"}${x} ${(h - 1 - (value / most) * (h - 3)).toFixed(1)}`;
      down = true;
    }
  });
  return (
    <svg class="spark" viewBox={`0 0 ${w} ${h}`} preserveAspectRatio="none" aria-hidden="true">
      <path d={path} />
    </svg>
  );
}

function Rate(props: { name: string; title: string; unit: string; series: Series; digits: number; least: number; scale?: number }) {
  // What was last, so that the number can be read when the answer is over.
  const last = props.series.findLast((v) => v !== null) ?? null;
  const now = props.series.at(-1) ?? null;
  return (
    <div class="rate" data-rate={props.name} title={props.title}>
      <dt>{props.name}</dt>
      <dd class={now === null ? "past" : ""}>
        {last === null ? "–" : (last * (props.scale ?? 1)).toFixed(props.digits)}
        <small>{props.unit}</small>
      </dd>
      <Spark series={props.series} least={props.least} />
    </div>
  );
}

const PARTS: [keyof Memory, string][] = [
  ["overhead_bytes", "Program"],
  ["dense_bytes", "Always used"],
  ["kv_bytes", "Conversation"],
  ["scratch_bytes", "Scratch"],
  ["staging_bytes", "On their way"],
  ["expert_bytes", "Experts"],
];

function Bar({ memory }: { memory: Memory }) {
  const whole = Math.max(memory.most_bytes ?? 0, memory.total_bytes, memory.streaming ? (memory.budget ?? 0) : 0);
  const parts = PARTS.map(([key, name]) => ({ key, name, bytes: Number(memory[key]) })).filter((part) => part.bytes > 0);
  return (
    <>
      <div class="bar" aria-hidden="true">
        {parts.map((part) => (
          <span class={`part ${part.key}`} style={{ width: `${(100 * part.bytes) / whole}%` }} title={`${part.name}: ${size(part.bytes)}`} />
        ))}
      </div>
      <dl class="legend" data-memory={memory.total_bytes}>
        {parts.map((part) => (
          <div>
            <dt>
              <i class={`dot ${part.key}`} />
              {part.name}
            </dt>
            <dd>{size(part.bytes)}</dd>
          </div>
        ))}
      </dl>
    </>
  );
}

/** Budgets in whole steps: a slider with a million positions cannot be used by keys. */
const STEPS = 200;

function Budget({ memory, said, say }: { memory: Memory; said: string; say: (text: string) => void }) {
  const [least, most] = [memory.least_bytes!, memory.most_bytes!];
  const bytes = (step: number) => Math.round(least + ((most - least) * step) / STEPS);
  const [wanted, want] = useState<number | null>(null);
  const asked = useRef(0);
  const step = Math.round(((Math.min(memory.budget ?? most, most) - least) / Math.max(1, most - least)) * STEPS);
  const shown = wanted ?? step;
  const set = (to: number) => {
    want(to);
    clearTimeout(asked.current);
    asked.current = window.setTimeout(async () => {
      try {
        const done = await json<{ given_back_bytes: number }>("/v1/memory", { bytes: bytes(to) });
        const given = done.given_back_bytes;
        say(given > 0 ? `${size(given)} went back to the system.` : `The budget is ${size(bytes(to))} now.`);
      } catch (error) {
        say(error instanceof Failure ? error.message : String(error));
      }
      want(null);
    }, 150);
  };
  return (
    <div class="budget">
      <label for="budget">
        Budget <output for="budget">{size(bytes(shown))}</output>
      </label>
      <input
        id="budget"
        type="range"
        min={0}
        max={STEPS}
        value={shown}
        disabled={most <= least}
        aria-valuetext={size(bytes(shown))}
        aria-describedby="budget-said"
        onInput={(e) => set(Number(e.currentTarget.value))}
      />
      <div class="ends" aria-hidden="true">
        <span>{size(least)}</span>
        <span>{size(most)}</span>
      </div>
      <p id="budget-said" class="note" role="status">
        {said || "Works while it talks."}
      </p>
    </div>
  );
}

function counts(bits: string[]): Map<number, number> {
  const all = new Map<number, number>(LEVELS.map((level) => [level, 0]));
  for (const layer of bits) for (const digit of layer) all.set(Number(digit), (all.get(Number(digit)) ?? 0) + 1);
  return all;
}

function Experts({ bits, event }: { bits: string[]; event: Event }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const picture = useRef<Picture | null>(null);
  const [below, point] = useState("");
  useEffect(() => {
    const made = (picture.current = new Picture(canvas.current!));
    const recolor = () => made.recolor();
    document.addEventListener("theme", recolor);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", recolor);
    return () => {
      made.end();
      document.removeEventListener("theme", recolor);
      dark.removeEventListener("change", recolor);
    };
  }, []);
  useEffect(() => picture.current?.show(bits, event.experts?.reads ?? null), [event]);
  const all = counts(bits);
  const most = bits.reduce((n, layer) => Math.max(n, layer.length), 0);
  const number = bits.reduce((n, layer) => n + layer.length, 0);
  const held = number - (all.get(0) ?? 0);
  const rows = bits.length;
  // Cells near squares, within what a panel has room for.
  const height = Math.round(Math.min(460, Math.max(120, rows * Math.min(10, Math.max(4, 300 / most)))));
  const summary = [...all].filter(([, n]) => n > 0).map(([level, n]) => `${n} at ${level} bits`);
  return (
    <figure class="experts">
      <canvas
        ref={canvas}
        role="img"
        style={{ height: `${height}px` }}
        data-bits={[...all].map(([level, n]) => `${level}:${n}`).join(" ")}
        aria-label={`Experts in memory: ${rows} layers of ${most}. ${summary.join(", ")}.`}
        onPointerMove={(e) => {
          const at = picture.current?.at(e.clientX, e.clientY);
          point(at ? `Layer ${at.layer}, expert ${at.expert}: ${at.bits ? `${at.bits} bits` : "not in memory"}` : "");
        }}
        onPointerLeave={() => point("")}
      />
      <div class="scale">
        {[...all].filter(([level, n]) => n > 0 || level === 0).map(([level, n]) => (
          <span>
            <i class={`cell bits-${level}`} />
            {level === 0 ? "not held" : `${level} bits`} <b>{n}</b>
          </span>
        ))}
        {event.experts && (
          <span>
            <i class="cell flash" />
            read now
          </span>
        )}
      </div>
      <figcaption>
        {below ||
          (event.experts
            ? `${held} of ${number} experts are in memory. Down: layers. Across: the experts of a layer.`
            : `Nothing streams: all ${number} experts are in memory for good.`)}
      </figcaption>
    </figure>
  );
}

export function Engine() {
  const [, draw] = useState(0);
  const [said, say] = useState("");
  useEffect(() => onLive(() => draw((n) => n + 1)), []);
  const event = live.last;
  if (!event) return <p class="note">{live.lost || "Waiting for the server …"}</p>;
  const { memory, stream } = event;
  const plan = state.plan;
  // Where nothing streams, the level that all of them have.
  const level = plan && (/level (\d)/.exec(plan.model.mode)?.[1] ?? plan.memory.levels.at(-1)?.bits);
  const whole = plan && level && plan.model.experts > 0 ? Array(plan.model.layers).fill(String(level).repeat(plan.model.experts)) : [];
  const bits = event.experts?.bits ?? whole;
  return (
    <div class={live.lost ? "engine lost" : "engine"}>
      {live.lost && <p class="note">{live.lost}</p>}
      <section aria-labelledby="rates">
        <h3 id="rates">
          Now
          <span class="state">{event.running > 0 ? `${event.running} answering` : "idle"}{event.waiting > 0 && `, ${event.waiting} waiting`}</span>
        </h3>
        <dl class="rates">
          <Rate name="Speed" title="Tokens generated, of all requests" unit="tok/s" series={live.speed} digits={1} least={1} />
          {stream && <Rate name="Precision" title="Mean bits of the experts that were used" unit="bits" series={live.bits} digits={2} least={8} />}
          {stream && <Rate name="Hits" title="Parts of experts that were in memory when they were wanted" unit="%" series={live.hits} digits={0} least={1} scale={100} />}
          {stream && <Rate name="Read" title="Read from storage for a token" unit="MB/token" series={live.read} digits={2} least={0.1} />}
        </dl>
      </section>
      <section aria-labelledby="memory">
        <h3 id="memory">
          Memory
          <span class="state">
            {size(memory.total_bytes)}
            {memory.budget !== null && ` of ${size(memory.budget)}`}
          </span>
        </h3>
        <Bar memory={memory} />
        {memory.least_bytes !== undefined ? (
          <Budget memory={memory} said={said} say={say} />
        ) : (
          <p class="note">
            {memory.streaming ? "The experts are on a GPU: its memory was divided when the model was opened." : "Everything fits. Start the server with a smaller --memory to see experts come and go."}
          </p>
        )}
      </section>
      {bits.length > 0 && (
        <section aria-labelledby="experts">
          <h3 id="experts">
            Experts
            <span class="state">{plan && `${plan.model.layers} × ${plan.model.experts}, ${plan.model.experts_used} a token`}</span>
          </h3>
          <Experts bits={bits} event={event} />
        </section>
      )}
    </div>
  );
}
