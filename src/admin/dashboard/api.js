// The admin API. The token is kept for this tab and travels in a header alone.

const KEY = "outport-admin-token";

// `outport demo` and friends may hand it over behind a `#`, which no server gets to see.
const handed = /^#token=(.+)$/.exec(location.hash);
if (handed) {
  sessionStorage.setItem(KEY, decodeURIComponent(handed[1]));
  history.replaceState(null, "", location.pathname);
}

export class Unauthorized extends Error {}

function headers() {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

export function signIn(token) {
  sessionStorage.setItem(KEY, token);
}

async function open(path, signal) {
  const response = await fetch(path, { headers: headers(), cache: "no-store", signal });
  if (response.status === 401) throw new Unauthorized();
  return response;
}

// JSON, or an error in the words of the API.
export async function get(path, signal) {
  const response = await open(path, signal);
  const body = await response.json();
  if (!response.ok) throw new Error(body.error || `status ${response.status}`);
  return body;
}

// What comes piece by piece, each piece ended by `end`.
async function pieces(path, end, onPiece, signal) {
  const response = await open(path, signal);
  if (!response.ok) throw new Error(`status ${response.status}`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the stream ended");
    text += value;
    const all = text.split(end);
    text = all.pop();
    for (const piece of all) await onPiece(piece);
  }
}

// Server-sent events, read by hand: EventSource sends no headers.
export function follow(path, onEvent, signal) {
  return pieces(path, "\n\n", (event) => {
    if (event.startsWith("data: ")) onEvent(JSON.parse(event.slice(6)));
  }, signal);
}

// A JSON object a line.
export function lines(path, onLine, signal) {
  return pieces(path, "\n", (line) => line && onLine(JSON.parse(line)), signal);
}
