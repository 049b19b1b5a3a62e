// What the server tells of a model at work, as long as somebody looks: `GET /v1/live`.
import { events } from "./api";

export interface Memory {
  budget: number | null;
  total_bytes: number;
  streaming: boolean;
  gpu: boolean;
  overhead_bytes: number;
  dense_bytes: number;
  kv_bytes: number;
  scratch_bytes: number;
  expert_bytes: number;
  staging_bytes: number;
  least_bytes?: number;
  most_bytes?: number;
}

export interface Event {
  seconds: number;
  tokens: number;
  running: number;
  waiting: number;
  memory: Memory;
  stream: { mean_bits: number | null; hit_rate: number | null; bytes_read: number; evictions: number } | null;
  experts: { bits: string[]; reads: string[] } | null;
}

/** A number over time; `null` where there is none. */
export type Series = (number | null)[];

const LENGTH = 160;

export const live = {
  last: null as Event | null,
  /** Why nothing comes. */
  lost: "",
  speed: [] as Series,
  bits: [] as Series,
  hits: [] as Series,
  read: [] as Series,
};

const heard = new Set<(event: Event | null) => void>();
let watching: AbortController | null = null;
/** Events of the last second: a quarter of a second has too few tokens for a rate. */
let second: Event[] = [];

function take(event: Event): void {
  live.last = event;
  live.lost = "";
  second = [...second, event].slice(-4);
  const seconds = second.reduce((sum, e) => sum + e.seconds, 0);
  const tokens = second.reduce((sum, e) => sum + e.tokens, 0);
  const bytes = second.reduce((sum, e) => sum + (e.stream?.bytes_read ?? 0), 0);
  const put = (series: Series, value: number | null) => {
    series.push(value);
    if (series.length > LENGTH) series.shift();
  };
  put(live.speed, seconds > 0 && tokens > 0 ? tokens / seconds : event.running > 0 ? 0 : null);
  put(live.bits, event.stream?.mean_bits ?? null);
  put(live.hits, event.stream?.hit_rate ?? null);
  put(live.read, tokens > 0 && event.stream ? bytes / tokens / 1e6 : null);
}

async function watch(signal: AbortSignal): Promise<void> {
  let pause = 500;
  while (!signal.aborted) {
    try {
      for await (const event of events("/v1/live", undefined, signal)) {
        take(event);
        heard.forEach((hear) => hear(event));
        pause = 500;
      }
    } catch (error) {
      if (signal.aborted) return;
      live.lost = error instanceof Error ? error.message : String(error);
      heard.forEach((hear) => hear(null));
    }
    await new Promise((done) => setTimeout(done, pause));
    pause = Math.min(pause * 2, 10_000);
  }
}

function decide(): void {
  const wanted = heard.size > 0 && !document.hidden;
  if (wanted && !watching) {
    watching = new AbortController();
    second = [];
    void watch(watching.signal);
  } else if (!wanted && watching) {
    watching.abort();
    watching = null;
  }
}

document.addEventListener("visibilitychange", decide);

/** Hears every event until the function that it returns is called. */
export function onLive(hear: (event: Event | null) => void): () => void {
  heard.add(hear);
  decide();
  return () => {
    heard.delete(hear);
    decide();
  };
}

/** Forgets a connection that was refused, such as for want of a key. */
export function again(): void {
  watching?.abort();
  watching = null;
  decide();
}
