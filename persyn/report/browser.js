// The browser of the sample: inflates it, filters it, shows it. Data enters the page by textContent only.
"use strict";
(() => {
  const PAGE = 25;
  const find = (id) => document.getElementById(`browse-${id}`);
  const form = find("filters");
  let sample, rows, shown = [], page = 0, applied;

  // Columns -> objects; a prompt owns the next so many responses and routes.
  function unpack(packed) {
    const table = (columns) => {
      const [first, ...others] = Object.entries(columns);
      const made = first[1].map((value) => ({[first[0]]: value}));
      for (const [name, values] of others) values.forEach((value, row) => { made[row][name] = value; });
      return made;
    };
    const responses = table(packed.responses), routes = table(packed.routes);
    let response = 0, route = 0;
    sample = packed;
    rows = table(packed.prompts);
    for (const row of rows) {
      row.domain = packed.domains[row.domain];
      row.source = packed.sources[row.source];
      row.license = packed.licenses[row.license];
      row.responses = responses.slice(response, response += row.responses);
      row.routes = routes.slice(route, route += row.routes);
      const rewards = row.responses.map((one) => one.reward).filter((reward) => reward !== null);
      row.best = rewards.length > 1 ? Math.max(...rewards) : null;
      row.spread = rewards.length > 1 ? row.best - Math.min(...rewards) : null;
      row.words = null;
      for (const one of row.responses) one.problems = problems(one);
    }
  }

  function problems(response) {
    const finish = sample.finish_reasons[response.finish_reason];
    const defects = sample.defects.filter((_, bit) => response.defects !== null && response.defects & (1 << bit));
    return finish === "stop" ? defects : [finish, ...defects];
  }

  const LABELS = {length: "cut at max tokens", error: "no answer (error)", dropped: "not trained on", any: "anything"};
  const label = (problem) => LABELS[problem] ?? problem.replaceAll("_", " ");

  // What the filters look at: the routes of the chosen strategy, and the responses those brought; or all of them.
  const routesOf = (row, strategy) =>
    strategy ? row.routes.filter((route) => sample.strategies[route.strategy] === strategy) : row.routes;

  function problemsOf(row, strategy) {
    const routes = routesOf(row, strategy);
    const teachers = strategy && new Set(routes.map((route) => route.teacher));
    const responses = row.responses.filter((one) => !strategy || teachers.has(one.teacher));
    const found = new Set(responses.flatMap((one) => one.problems));
    const served = new Set(routes.filter((route) => route.kept !== 0).map((route) => route.strategy));
    if (routes.some((route) => !served.has(route.strategy))) found.add("dropped");
    return found;
  }

  // Of two teachers of a strategy the stronger comes first, and its margin counts.
  function marginOf(row, strategy) {
    const first = new Map();
    for (const route of routesOf(row, strategy)) if (!first.has(route.strategy)) first.set(route.strategy, route.margin);
    const margins = [...first.values()].filter((margin) => margin !== null);
    return margins.length ? Math.min(...margins) : null;
  }

  function disagree(row) {
    const chosen = new Map();
    for (const route of row.routes) chosen.set(route.strategy, `${chosen.get(route.strategy) ?? ""} ${route.teacher}`);
    return new Set(chosen.values()).size > 1;
  }

  function matches(row, filters) {
    const {domain, source, strategy, teacher, problem} = filters;
    if (domain && row.domain !== domain || source && row.source !== source) return false;
    if (filters.parallel && !row.parallel || filters.disagree && !disagree(row)) return false;
    if (strategy && !routesOf(row, strategy).length) return false;
    if (teacher && !routesOf(row, strategy).some((route) => sample.teachers[route.teacher] === teacher)) return false;
    if (problem) {
      const found = problemsOf(row, strategy);
      if (problem === "any" ? !found.size : !found.has(problem)) return false;
    }
    if (filters.low || filters.high) {
      const margin = marginOf(row, strategy);
      if (margin === null || filters.low && margin < Number(filters.low)) return false;
      if (filters.high && margin > Number(filters.high)) return false;
    }
    if (!filters.q) return true;
    row.words ??= [row.prompt_id, row.prompt, ...row.responses.map((one) => one.response)].join("\n").toLowerCase();
    return filters.q.toLowerCase().split(/\s+/).every((word) => row.words.includes(word));
  }

  const ORDERS = {
    unsure: (row, strategy) => marginOf(row, strategy),
    sure: (row, strategy) => -(marginOf(row, strategy) ?? NaN),
    apart: (row) => -(row.spread ?? NaN),
    alike: (row) => row.spread,
  };

  function select(filters) {
    const found = rows.filter((row) => matches(row, filters));
    const order = ORDERS[filters.sort];
    if (!order) return found;
    const key = (row) => {
      const value = order(row, filters.strategy);
      return value === null || Number.isNaN(value) ? Infinity : value;
    };
    const keys = new Map(found.map((row) => [row, key(row)]));
    return found.sort((one, other) => (keys.get(one) === keys.get(other) ? 0 : keys.get(one) - keys.get(other)));
  }

  // Elements. What cannot be seen, or turns the text around, is shown as an escape.
  const HIDDEN = /(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;

  function element(tag, name, ...children) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...children);
    return made;
  }

  function escaped(character) {
    const code = character.codePointAt(0);
    return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u{${code.toString(16)}}`;
  }

  function text(tag, name, value) {
    const made = element(tag, name);
    let start = 0;
    for (const found of value.matchAll(HIDDEN)) {
      made.append(value.slice(start, found.index), element("span", "browse-escape", escaped(found[0])));
      start = found.index + found[0].length;
    }
    made.append(value.slice(start));
    return made;
  }

  const number = (value) => (value === null ? "–" : String(Number(value.toFixed(3))).replace("-", "−"));
  const badge = (name, value) => text("span", `browse-badge ${name}`, value);

  function passage(value, length) {
    const characters = [...value];
    if (characters.length <= length) return text("div", "browse-text", value);
    const made = text("div", "browse-text", characters.slice(0, length).join(""));
    made.append(element("span", "browse-cut", `… cut here at ${length} characters`));
    return made;
  }

  function routesTable(row) {
    const head = ["strategy", "teacher", "strength", "margin", "trained on"].map((name) => element("th", "", name));
    const lines = row.routes.map((route) => element("tr", "",
      text("td", "", sample.strategies[route.strategy]),
      text("td", "", sample.teachers[route.teacher]),
      element("td", "browse-number", number(route.strength)),
      element("td", "browse-number", number(route.margin)),
      element("td", "", {0: "no", 1: "yes"}[route.kept] ?? "–")));
    const made = element("table", "", element("thead", "", element("tr", "", ...head)), element("tbody", "", ...lines));
    return element("div", "browse-scroll", made);
  }

  function responseCard(row, response) {
    const best = row.best !== null && response.reward === row.best;
    const head = element("header", "", text("h4", "", sample.teachers[response.teacher]));
    if (best) head.append(badge("browse-best", "highest reward"));
    for (const route of row.routes.filter((one) => one.teacher === response.teacher)) {
      head.append(badge("browse-route", sample.strategies[route.strategy]));
    }
    for (const problem of response.problems) head.append(badge("browse-problem", label(problem)));
    const scores = element("dl", "");
    for (const name of ["reward", "quality", "learnability", "tokens"]) {
      scores.append(element("div", "", element("dt", "", name), element("dd", "", number(response[name]))));
    }
    if (response.thought) {
      scores.append(element("div", "", element("dt", "", "thought"), element("dd", "", `${response.thought} characters`)));
    }
    const body = response.response ? passage(response.response, sample.cut.response)
      : element("div", "browse-text browse-cut", "(no text)");
    return element("article", best ? "browse-card browse-card-best" : "browse-card", head, scores, body);
  }

  function details(row) {
    const rank = (one) => one.reward ?? -Infinity;
    const order = [...row.responses].sort((one, other) => (rank(one) === rank(other) ? 0 : rank(other) - rank(one)));
    const made = element("div", "browse-details",
      element("h3", "", "Prompt"), passage(row.prompt, sample.cut.prompt),
      element("p", "browse-note", text("code", "", row.prompt_id), " · ", text("span", "", row.source), " · ",
        text("span", "", row.license), " · ", text("code", "", `persyn show ${row.prompt_id}`)));
    if (row.reference) made.append(element("h3", "", "Reference"), passage(row.reference, sample.cut.reference));
    if (row.routes.length) made.append(element("h3", "", "Routes"), routesTable(row));
    made.append(element("h3", "", `Responses: ${row.responses.length} of ${sample.teachers.length} teachers`),
      element("div", "browse-cards", ...order.map((response) => responseCard(row, response))));
    return made;
  }

  function item(row, filters) {
    const line = element("span", "browse-line", badge("", row.domain));
    if (row.parallel) line.append(badge("", "parallel"));
    const route = routesOf(row, filters.strategy)[0];
    if (route) {
      const chosen = `${sample.strategies[route.strategy]} → ${sample.teachers[route.teacher]}`;
      line.append(badge("browse-route", route.margin === null ? chosen : `${chosen}, margin ${number(route.margin)}`));
    }
    if (disagree(row)) line.append(badge("", "strategies disagree"));
    for (const problem of problemsOf(row, filters.strategy)) line.append(badge("browse-problem", label(problem)));
    line.append(text("code", "browse-id", row.prompt_id));
    const start = [...row.prompt.slice(0, 600)].slice(0, 300).join("");
    const button = element("button", "browse-open", text("span", "browse-start", start), line);
    const made = element("li", "", button);
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!open));
      if (open) made.lastChild.remove();
      else made.append(details(row));
    });
    return made;
  }

  // The filters are the form's fields; the address after `#browse?` holds those that are set.
  const filtersNow = () => Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim()]));

  function show() {
    const filters = filtersNow(), pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    find("count").textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} prompts`;
    find("page").textContent = `page ${page + 1} of ${pages}`;
    find("previous").disabled = page === 0;
    find("next").disabled = page === pages - 1;
    const items = shown.slice(page * PAGE, (page + 1) * PAGE).map((row) => item(row, filters));
    find("list").replaceChildren(...items);
    if (shown.length === 1 && shown[0].prompt_id === filters.q.toLowerCase()) items[0].firstChild.click();
    const set = Object.entries(filters).filter(([, value]) => value);
    const address = new URLSearchParams(page ? [...set, ["page", page + 1]] : set).toString();
    const now = address ? `#browse?${address}` : "";
    if (now || location.hash.startsWith("#browse?")) history.replaceState(null, "", now || "#browse");
  }

  function apply(toPage = 0) {
    const filters = filtersNow();
    applied = JSON.stringify(filters);
    shown = select(filters);
    page = toPage;
    show();
  }

  function restore() {
    if (!location.hash.startsWith("#browse?")) return false;
    const asked = new URLSearchParams(location.hash.slice("#browse?".length));
    for (const field of form.elements) {
      if (field.type === "checkbox") field.checked = asked.has(field.name);
      else if (field.name) field.value = asked.get(field.name) ?? "";
      if (field.selectedIndex === -1) field.selectedIndex = 0;
    }
    apply(Number(asked.get("page") ?? 1) - 1);
    find("body").parentElement.scrollIntoView();
    return true;
  }

  function choices(name, values, shownAs = (value) => value) {
    const options = values.map((value) => {
      const option = element("option", "", shownAs(value).replace(HIDDEN, escaped));  // it holds no element
      option.value = value;
      return option;
    });
    form.elements[name].append(...options);
  }

  function fillFilters() {
    const count = (values) => {
      const counts = new Map();
      for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
      return counts;
    };
    for (const [name, known] of [["domain", sample.domains], ["source", sample.sources]]) {
      const counts = count(rows.map((row) => row[name]));
      choices(name, known, (value) => `${value} (${counts.get(value)})`);
    }
    choices("strategy", sample.strategies);
    choices("teacher", sample.teachers);
    const found = rows.map((row) => problemsOf(row, ""));
    const counts = count(found.flatMap((one) => [...one, ...(one.size ? ["any"] : [])]));
    const known = ["any", "dropped", "length", "error", ...sample.defects].filter((problem) => counts.has(problem));
    choices("problem", known, (problem) => `${label(problem)} (${counts.get(problem)})`);
  }

  function listen() {
    let waiting;
    const later = (event) => {
      clearTimeout(waiting);
      if (JSON.stringify(filtersNow()) !== applied) waiting = setTimeout(apply, event.type === "input" ? 150 : 0);
    };
    form.addEventListener("input", later);
    form.addEventListener("change", later);
    form.addEventListener("reset", () => setTimeout(apply));
    form.addEventListener("submit", (event) => event.preventDefault());
    const turn = (step) => {
      page += step;
      show();
      find("count").scrollIntoView();
    };
    find("previous").addEventListener("click", () => turn(-1));
    find("next").addEventListener("click", () => turn(1));
    window.addEventListener("hashchange", restore);
  }

  async function open() {
    if (typeof DecompressionStream === "undefined") {
      find("status").textContent = "This browser cannot inflate the sample: it lacks DecompressionStream. "
        + "Open the page in Chrome or Edge 80, Firefox 113, Safari 16.4, or later.";
      return;
    }
    const letters = atob(find("sample").textContent), bytes = new Uint8Array(letters.length);
    for (let place = 0; place < letters.length; place++) bytes[place] = letters.charCodeAt(place);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    unpack(await new Response(stream).json());
    fillFilters();
    listen();
    find("status").hidden = true;
    find("body").hidden = false;
    if (!restore()) apply();
    performance.mark("browse-ready");
  }

  open().catch((error) => {
    find("status").textContent = `The sample could not be opened: ${error}`;
  });
})();
