// Talks to the server: requests with the key, server-sent events, errors in the server's own words.

const KEY = "dollop.key";
let key = readKey();

function readKey(): string {
  try {
    return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function hasKey(): boolean {
  return key !== "";
}

/** Sets the key, for this tab or for good. */
export function setKey(value: string, keep: boolean): void {
  key = value.trim();
  try {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
    if (key) (keep ? localStorage : sessionStorage).setItem(KEY, key);
  } catch {
    // It is known as long as the page is open.
  }
}

/** What went wrong, as the server says it, and what can be done. */
export class Failure extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string | null,
    readonly todo: string,
  ) {
    super(message);
  }
}

function todo(status: number, code: string | null, after: string | null): string {
  if (status === 401) return "Enter the server's API key. It is in the file or variable that the server was started with.";
  if (code === "host_not_allowed") return "Start the server with --host and this name, or open it by its address.";
  if (code === "context_length_exceeded") return "Begin a new conversation, or shorten this one.";
  if (status === 413) return "Send less text, or start the server with a larger --max-body.";
  if (status === 429) return `Try again${after ? ` in ${after} s` : " soon"}: other requests are being answered.`;
  if (status === 503) return "The server is stopping. Start it again, then try again.";
  if (status >= 500) return "This is the server's own fault. Its log (-v) says more; try again.";
  if (status === 400) return "Change what it names, under Settings, and try again.";
  return "";
}

function lost(error: unknown): Failure {
  const said = error instanceof Error ? error.message : String(error);
  return new Failure(`The server cannot be reached (${said}).`, 0, null, "See that `dollop serve` runs, then try again.");
}

async function refused(response: Response): Promise<Failure> {
  const text = await response.text().catch(() => "");
  let message = text.slice(0, 2000);
  let code: string | null = null;
  try {
    const error = JSON.parse(text).error;
    message = String(error.message ?? error);
    code = typeof error.code === "string" ? error.code : null;
  } catch {
    // Not this server's form: shown as it is.
  }
  const after = response.headers.get("retry-after");
  return new Failure(message || response.statusText, response.status, code, todo(response.status, code, after));
}

/** A response that is no error. */
export async function request(path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = {};
  if (key) headers["authorization"] = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response: Response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? null : JSON.stringify(body),
      signal: signal ?? null,
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw lost(error);
  }
  if (!response.ok) throw await refused(response);
  return response;
}

export async function json<T>(path: string, body?: unknown): Promise<T> {
  return (await request(path, body)).json() as Promise<T>;
}

/** The data of server-sent events, as they come. An error that is sent instead of data is thrown. */
export async function* events(path: string, body: unknown, signal: AbortSignal): AsyncGenerator<any> {
  const response = await request(path, body, signal);
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        const data = line.slice(6);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) {
          const code = typeof event.error.code === "string" ? event.error.code : null;
          throw new Failure(String(event.error.message ?? event.error), 503, code, "Try again.");
        }
        yield event;
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof Failure) throw error;
    throw lost(error);
  } finally {
    reader.cancel().catch(() => {});
  }
}
