// One WebSocket, which comes back by itself.

const FIRST = 500; // milliseconds until the first attempt to come back; each takes twice as long, up to
const LONGEST = 15_000;
const EXPIRED = 4401;

export class Connection {
  #token;
  #on;
  #socket;
  #attempts = 0;
  #timer;

  /**
   * @param {string} token proves who asks.
   * @param {{status: (kind: string) => void, event: (event: object) => void, refused: (why: string) => void}} on
   */
  constructor(token, on) {
    this.#token = token;
    this.#on = on;
    addEventListener("online", this.open);
    this.open();
  }

  /** Connect, at once; nothing where it is connected, or was left. */
  open = () => {
    clearTimeout(this.#timer);
    if (this.#socket || !this.#token) return;
    this.#on.status("connecting");
    const url = new URL("chat", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    // Browsers set no headers on WebSockets, and a URL would stand in logs.
    const socket = new WebSocket(url, ["chat", `bearer.${this.#token}`]);
    this.#socket = socket;
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.#on.status("connected");
    };
    socket.onmessage = ({ data }) => {
      this.#attempts = 0; // not when it opens, since it may be closed again at once
      this.#on.event(JSON.parse(data));
    };
    socket.onclose = ({ code }) => {
      if (this.#socket !== socket) return; // left
      this.#socket = undefined;
      this.#closed(code, opened);
    };
  };

  /** Whether it was sent; what was, may still be lost. */
  send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  /** Leave for good. */
  leave() {
    clearTimeout(this.#timer);
    removeEventListener("online", this.open);
    const socket = this.#socket;
    this.#socket = this.#token = undefined;
    socket?.close();
  }

  async #closed(code, opened) {
    const wait = Math.min(LONGEST, FIRST * 2 ** this.#attempts++) * (0.5 + Math.random() / 2); // not all at once
    this.#on.status("lost");
    const why = code === EXPIRED ? "Your session has expired." : opened ? undefined : await this.#refusal();
    if (!this.#token) return; // left meanwhile: nothing of this is the next one's
    if (why) {
      this.leave();
      this.#on.refused(why);
    } else if (!this.#socket) {
      this.#timer = setTimeout(this.open, wait);
    }
  }

  /** Why the server does not let us in; a page is not told that of a WebSocket. */
  async #refusal() {
    try {
      const answer = await fetch("me", { headers: { authorization: `Bearer ${this.#token}` } });
      if (answer.status === 401) return "Your session has ended.";
      if (answer.status === 403) return "You may not act in this tenant any more.";
    } catch {
      // nobody is there
    }
    return undefined;
  }
}
