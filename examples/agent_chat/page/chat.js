// The page. All that comes from elsewhere is put in as text; the server's Content-Security-Policy allows nothing else.

import { Connection } from "./connection.js";

const NAMES = { acme: "Acme", globex: "Globex", ann: "Ann", bob: "Bob", eve: "Eve" };
const SUGGESTIONS = ["search thread", "pin Release on Friday", "who am I", "divide 1 by 0"];
const STATUS = { connecting: "Connecting…", connected: "Connected", lost: "Connection lost. Retrying…" };

const $ = (id) => document.getElementById(id);
const wide = matchMedia("(min-width: 60rem)");

let session; // {token, tenant, user}, of this window alone: another may be somebody else
let connection;
const shown = new Map(); // elements of messages, by id
const unsent = new Map(); // texts that have not come back yet, by id
const cards = new Map(); // elements of tools at work, by call id
let seenNotes;
let isBack = false; // connected, and not yet told what there is

/** Make an element: attributes and properties, then children, of which strings become text. */
function make(tag, set = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(set)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function nameOf(id) {
  return NAMES[id] ?? id;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function say(text) {
  $("said").textContent = text; // for those who hear the page
}

// Who it is.

function enter(given) {
  connection?.leave(); // who signs in twice is there once
  // The same one goes on where the session has expired.
  if (given.tenant !== session?.tenant || given.user !== session.user) forget();
  session = given;
  sessionStorage.setItem("session", JSON.stringify(session));
  const [tenant, user] = [nameOf(session.tenant), nameOf(session.user)];
  document.documentElement.dataset.tenant = session.tenant;
  document.title = `${user} at ${tenant} – Agent chat`;
  $("who-tenant").textContent = $("board-tenant").textContent = tenant;
  $("who-user").textContent = user;
  $("welcome-title").textContent = `Hello ${user}`;
  $("entrance").hidden = true;
  $("room").hidden = false;
  connection = new Connection(session.token, { status, event: receive, refused: leave });
  $("text").focus();
}

/** Leave nothing of theirs to whoever comes next. */
function forget() {
  session = undefined;
  for (const map of [shown, unsent, cards]) map.clear();
  for (const id of ["log", "work", "said"]) $(id).replaceChildren();
  showNotes([]);
  seenNotes = undefined;
  showCounts({});
  $("welcome").hidden = true;
  $("text").value = "";
  notice("");
}

function leave(why = "") {
  connection?.leave();
  if (!why) forget();
  sessionStorage.removeItem("session");
  delete document.documentElement.dataset.tenant;
  document.title = "Agent chat";
  $("room").hidden = true;
  $("entrance").hidden = false;
  refuse(why && `${why} Please sign in again.`);
  $("login").querySelector("input:checked").focus();
}

function refuse(why) {
  $("login-error").textContent = why;
  $("login-error").hidden = !why;
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const asked = Object.fromEntries(new FormData(event.target));
  try {
    const headers = { "content-type": "application/json" };
    const answer = await fetch("login", { method: "POST", headers, body: JSON.stringify(asked) });
    const given = await answer.json();
    if (!answer.ok) throw new Error(typeof given.detail === "string" ? given.detail : "That was not accepted.");
    refuse("");
    enter({ ...asked, token: given.token });
  } catch (error) {
    refuse(error instanceof TypeError ? "The server cannot be reached. Please try again." : error.message);
  }
});

$("leave").addEventListener("click", () => leave());
$("again").addEventListener("click", () => {
  connection.open();
  $("text").focus(); // the button is gone
});

function status(kind) {
  $("status").textContent = STATUS[kind];
  $("status").dataset.kind = kind;
  $("again").hidden = kind !== "lost";
  $("send").disabled = kind !== "connected";
  isBack = kind === "connected";
  if (kind === "connected") return;
  cards.clear(); // how they end is told by the answer
  clearWork();
}

// What comes.

function receive(event) {
  const isLow = $("scroller").scrollHeight - $("scroller").scrollTop - $("scroller").clientHeight < 80;
  if (event.type === "state") {
    if (event.conversation) showConversation(event.conversation);
    if (event.notes) showNotes(event.notes);
    if (event.counts) showCounts(event.counts);
  } else if (event.type === "refused") {
    notice(event.text);
    takeBack();
  } else {
    showWork(event);
  }
  if (isLow) showLast();
}

/** At once: while it still moved, what comes next would not know that it is to be followed. */
function showLast() {
  $("scroller").scrollTop = $("scroller").scrollHeight;
}

function showConversation(messages) {
  const ids = new Set(messages.map(({ id }) => id));
  for (const [id, element] of shown) {
    if (ids.has(id) || unsent.has(id)) continue;
    element.remove();
    shown.delete(id);
  }
  for (const message of messages) {
    unsent.delete(message.id);
    const before = shown.get(message.id);
    if (before?.matches(".unsent")) {
      before.classList.remove("unsent");
      before.querySelector(".from").replaceWith(fromOf(message));
    } else if (!before) {
      const element = messageOf(message);
      $("log").insertBefore(element, $("log").querySelector(".unsent"));
      shown.set(message.id, element);
      if (message.role === "agent") clearWork();
    }
  }
  // What was perhaps lost goes again: the server knows it by its id.
  if (isBack) for (const [id, text] of unsent) connection.send({ id, text });
  isBack = false;
  $("welcome").hidden = shown.size > 0;
}

function fromOf({ role, at }) {
  const time = at ? new Date(at).toLocaleTimeString([], { timeStyle: "short" }) : "sending…";
  const name = role === "user" ? nameOf(session.user) : "Agent";
  return make("p", { className: "from" }, make("b", {}, name), " ", make("time", at ? { dateTime: at } : {}, time));
}

function messageOf({ role, text, at, calls = [] }) {
  const element = make("article", { className: `message ${role}` }, fromOf({ role, at }));
  for (const { tool, code, text: why } of calls) {
    const what = code ? { className: "call failed", title: code } : { className: "call done" };
    element.append(make("p", what, make("code", {}, tool), code ? ` failed: ${why}` : " done"));
  }
  element.append(make("p", { className: "text", dir: "auto" }, text));
  return element;
}

function showWork({ type, tool, call_id, data, text }) {
  if (type === "tool_started") {
    const card = make("section", { className: "card work", "aria-label": `${tool} at work` });
    card.append(make("code", {}, tool), make("span", { className: "step" }, "working…"), make("progress", { "aria-label": tool }));
    cards.set(call_id, card);
    $("work").append(card);
    say(`${tool} has begun.`);
    return;
  }
  const card = cards.get(call_id);
  if (!card) return;
  const [step, bar] = [card.querySelector(".step"), card.querySelector("progress")];
  if (type === "tool_progress") {
    step.textContent = data.step ?? "working…";
    [bar.max, bar.value] = [data.of ?? 1, data.done ?? 0];
  } else {
    cards.delete(call_id);
    bar.remove();
    card.classList.add(type === "tool_failed" ? "failed" : "done");
    step.textContent = type === "tool_failed" ? text : "done";
    say(type === "tool_failed" ? `${tool} failed: ${text}` : `${tool} is done.`);
  }
}

/** Only what is still at work stays: an answer may be another window’s. */
function clearWork() {
  $("work").replaceChildren(...cards.values());
}

function showNotes(notes) {
  $("notes").replaceChildren(
    ...notes.map(({ number, text, by }) =>
      make(
        "li",
        { value: number, className: seenNotes && !seenNotes.has(number) ? "new" : "" },
        make("span", { className: "text", dir: "auto" }, text),
        make("span", { className: "hint" }, `Note ${number}, by ${nameOf(by)}`),
      ),
    ),
  );
  seenNotes = new Set(notes.map(({ number }) => number));
  $("board-size").textContent = `${notes.length} ${notes.length === 1 ? "note" : "notes"}`;
  $("notes").hidden = notes.length === 0;
  $("no-notes").hidden = notes.length > 0;
}

function showCounts({ messages = 0, searches = 0 }) {
  $("count-messages").textContent = messages;
  $("count-searches").textContent = searches;
}

// What goes.

function send(text) {
  const id = crypto.randomUUID();
  if (!text || !connection.send({ id, text })) return false;
  unsent.set(id, text);
  const element = messageOf({ role: "user", text });
  element.classList.add("unsent");
  shown.set(id, element);
  $("log").append(element);
  $("welcome").hidden = true;
  notice("");
  showLast();
  return true;
}

function takeBack() {
  for (const [id, text] of unsent) {
    shown.get(id).remove();
    shown.delete(id);
    $("text").value = text;
  }
  unsent.clear();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (send($("text").value.trim())) $("text").value = "";
});

$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!$("send").disabled) $("composer").requestSubmit();
});

$("suggestions").append(
  ...SUGGESTIONS.map((text) => {
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => send(text) && $("text").focus());
    return button;
  }),
);

const fold = () => ($("board").open = wide.matches);
wide.addEventListener("change", fold);
fold();

const kept = sessionStorage.getItem("session");
if (kept) enter(JSON.parse(kept));
else leave();
