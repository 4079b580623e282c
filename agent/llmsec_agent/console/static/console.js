// Times in the reader's own zone; UTC stays in the title. Pages work without this.
for (const time of document.querySelectorAll("time[datetime]")) {
  const at = new Date(time.dateTime);
  if (!Number.isNaN(at.valueOf())) {
    time.textContent = at.toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });
    time.title = time.dateTime + " (UTC)";
  }
}

// The live page: each event is one exchange or one finding, as text alone. While it is hidden it asks for nothing, as a browser has six connections to a console.
const live = document.querySelector("table[data-live]");
if (live) {
  const most = 200;
  const body = live.tBodies[0];
  const early = document.getElementById("live-findings");
  const state = document.getElementById("live-state");
  const login = document.getElementById("live-login");
  const pause = document.getElementById("live-pause");
  let source = null;
  let timer = 0;
  let delay = 1000;
  let since = ""; // where the console goes on when this page comes back
  let trouble = "";
  let waiting = null; // what comes while the reader has paused
  let left = 0; // what came and is not shown: of this connection, and from before
  let missed = 0;

  const say = () => {
    const texts = [trouble || "Following the store."];
    if (waiting) texts.push("Paused.");
    if (left + missed) texts.push(left + missed + " more were stored or found than are shown; the lists of exchanges and findings have them.");
    const text = texts.join(" ");
    if (state.textContent !== text) state.textContent = text; // which screen readers say
    pause.textContent = waiting ? "Go on (" + waiting.length + ")" : "Pause";
  };
  const add = (rows, id, cells, numbers, limit) => {
    const line = rows.insertRow(0);
    for (const [index, value] of cells.entries()) {
      const cell = line.insertCell();
      if (index === 0) {
        const link = document.createElement("a");
        link.href = "/exchanges/" + encodeURIComponent(id);
        link.textContent = new Date(value).toLocaleTimeString();
        link.title = value + " (UTC)";
        cell.append(link);
      } else {
        const text = document.createElement("bdi");
        text.textContent = value;
        cell.append(text);
      }
      if (numbers.includes(index)) cell.className = "number";
    }
    line.dataset.id = id;
    while (rows.rows.length > limit) rows.deleteRow(-1);
  };
  const show = (row) => {
    if (row.finding) {
      early.hidden = false;
      add(early.querySelector("tbody"), row.id, row.finding, [], 20);
    } else if (![...body.rows].some((line) => line.dataset.id === row.id)) { // told once more after a break
      add(body, row.id, row.cells, [3, 4, 5, 6], most);
    }
  };
  const close = () => {
    clearTimeout(timer);
    if (source) source.close();
    source = null;
    missed += left;
    left = 0;
  };
  const open = () => {
    close();
    if (document.hidden) return;
    source = new EventSource(live.dataset.live + (since && "?since=" + since));
    source.onmessage = (event) => {
      const row = JSON.parse(event.data);
      since = event.lastEventId;
      if (!waiting) {
        show(row);
        return;
      }
      waiting.push(row);
      if (waiting.length > most) {
        waiting.shift();
        missed += 1;
      }
      say();
    };
    source.addEventListener("state", (event) => {
      const told = JSON.parse(event.data);
      since = event.lastEventId || since;
      trouble = told.fault && "The store cannot be followed, and what is shown may be old: " + told.fault + ". Trying again.";
      left = told.left_out;
      delay = 1000;
      login.hidden = true;
      say();
    });
    source.onerror = lost;
  };
  // An EventSource gives up for good where it is answered by anything but events, and does not say by what.
  const lost = async () => {
    close();
    trouble = "The console does not answer; what is shown may be old. Trying again.";
    say();
    try {
      const answer = await fetch(live.dataset.live, { redirect: "manual", signal: AbortSignal.timeout(5000) });
      if (answer.body) answer.body.cancel();
      login.hidden = answer.type !== "opaqueredirect";
      if (!login.hidden) trouble = "You are not logged in any more; what is shown may be old.";
      else if (!answer.ok) trouble = "The console answers with an error (" + answer.status + "); what is shown may be old. Trying again.";
    } catch {
      // It does not answer.
    }
    say();
    clearTimeout(timer);
    timer = setTimeout(open, delay);
    delay = Math.min(2 * delay, 30000);
  };
  pause.addEventListener("click", () => {
    const shown = waiting;
    waiting = waiting ? null : [];
    pause.setAttribute("aria-pressed", String(waiting !== null));
    for (const row of shown || []) show(row);
    say();
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) close(); else open(); });
  open();
}
