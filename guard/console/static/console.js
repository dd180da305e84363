// What the pages gain from a script: keys, the undo clock, drafts, new cases, colours. All of them work without it.
// Text is only ever set as text: nothing here makes markup.
(function () {
  "use strict";
  var root = document.documentElement;
  function kept(store, name, value) { // a private window may refuse to keep anything
    try {
      if (value === undefined) return store.getItem(name);
      if (value === null) store.removeItem(name); else store.setItem(name, value);
    } catch (e) { /* not kept */ }
    return null;
  }
  var theme = kept(localStorage, "guard-theme");
  if (theme) root.dataset.theme = theme; // before the first paint

  document.addEventListener("DOMContentLoaded", function () {
    var $ = function (s) { return document.querySelector(s); };
    var $$ = function (s) { return Array.prototype.slice.call(document.querySelectorAll(s)); };
    var live = $("#live"), shown = Date.now();
    function say(text) { if (live) live.textContent = text; }

    $$("[data-theme-toggle]").forEach(function (button) {
      button.addEventListener("click", function () {
        var dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
        root.dataset.theme = dark ? "light" : "dark";
        kept(localStorage, "guard-theme", root.dataset.theme);
        say(dark ? "Light colours" : "Dark colours");
      });
    });

    // -- help, and whether single letters are keys --------------------------------------------
    var help = $("#help"), single = $("#single");
    $$("[data-help]").forEach(function (b) { b.addEventListener("click", function () { help.showModal(); }); });
    $$("[data-close]").forEach(function (b) { b.addEventListener("click", function () { b.closest("dialog").close(); }); });
    if (single) {
      single.checked = kept(localStorage, "guard-keys") !== "off";
      single.addEventListener("change", function () { kept(localStorage, "guard-keys", single.checked ? null : "off"); });
    }
    $$("[data-confirm]").forEach(function (b) {
      b.addEventListener("click", function (event) { if (!window.confirm(b.dataset.confirm)) event.preventDefault(); });
    });

    // -- a decision is sent once ---------------------------------------------------------------
    $$("form[method=post]").forEach(function (form) {
      form.addEventListener("submit", function (event) {
        if (form.dataset.sent) { event.preventDefault(); return; }
        form.dataset.sent = "yes";
        if (event.submitter) event.submitter.setAttribute("aria-busy", "true");
      });
    });
    window.addEventListener("pageshow", function (event) { if (event.persisted) location.reload(); }); // claims have changed

    // -- undo: the server says how long ---------------------------------------------------------
    var toast = $("#toast");
    if (toast) {
      var end = Date.now() + 1000 * Number(toast.dataset.left);
      say(toast.querySelector("[data-what]").textContent + ". Press u to undo.");
      var clock = setInterval(function () {
        var left = Math.ceil((end - Date.now()) / 1000);
        toast.querySelector("[data-left-text]").textContent = left + " s";
        if (left <= 0) { clearInterval(clock); toast.remove(); }
      }, 250);
      var heading = $("main h1[tabindex]");
      if (heading) heading.focus();
    }

    // -- the note ---------------------------------------------------------------------------------
    var noteRow = $("#note-row"), note = $("#note"), noteButton = $("[data-note]");
    if (noteButton) {
      noteButton.hidden = false;
      if (!note.value) noteRow.hidden = true;
      noteButton.addEventListener("click", openNote);
    }
    function openNote() { if (!note) return false; noteRow.hidden = false; note.focus(); return true; }

    // -- editing: drafts stay in this tab, and what changed is marked -----------------------------
    var area = $("textarea[data-draft]"), form = $("#decide");
    if (area) {
      var name = "guard-draft/" + area.dataset.draft, draft = kept(sessionStorage, name), original = area.defaultValue;
      if (draft !== null && !$("[role=alert]")) { area.value = draft; mark(); }
      var timer = null;
      area.addEventListener("input", function () {
        mark();
        clearTimeout(timer);
        timer = setTimeout(function () {
          kept(sessionStorage, name, area.value);
          $("[data-draft-note]").textContent = "kept in this tab";
        }, 500);
      });
      $("[data-cancel]").addEventListener("click", function () { kept(sessionStorage, name, null); });
      form.addEventListener("submit", function () { clearTimeout(timer); kept(sessionStorage, name, null); });
      mark();
    }
    function mark() {
      var diff = $("#diff"), text = $("#draft-text");
      if (!diff) return;
      diff.textContent = "";
      changes(text.textContent, area.value).forEach(function (piece) {
        var element = document.createElement(piece[0] === "-" ? "del" : piece[0] === "+" ? "ins" : "span");
        element.textContent = piece[1];
        diff.appendChild(element);
      });
    }
    // The longest common subsequence of words; texts of more than 1,500 words are only put side by side.
    function changes(before, after) {
      var a = before.match(/\s+|\S+/g) || [], b = after.match(/\s+|\S+/g) || [], i, j, out = [];
      if (a.length > 3000 || b.length > 3000) return [["-", before], ["+", after]];
      var best = [];
      for (i = a.length; i >= 0; i--) {
        best[i] = new Uint16Array(b.length + 1);
        for (j = b.length - 1; i < a.length && j >= 0; j--) {
          best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
        }
      }
      function put(kind, word) {
        if (out.length && out[out.length - 1][0] === kind) out[out.length - 1][1] += word; else out.push([kind, word]);
      }
      for (i = 0, j = 0; i < a.length || j < b.length;) {
        if (i < a.length && j < b.length && a[i] === b[j]) { put("=", a[i]); i++; j++; }
        else if (i < a.length && (j >= b.length || best[i + 1][j] >= best[i][j + 1])) put("-", a[i++]);
        else put("+", b[j++]);
      }
      return out;
    }

    // -- marks of sentences stay in this tab until the decision, also from the case to its editing -----
    var marks = $$("fieldset.mark"), marksName = form && marks.length ? "guard-marks/" + form.dataset.marks : null;
    function keepMarks() {
      var found = {};
      marks.forEach(function (each) { var on = each.querySelector(":checked"); if (on && on.value) found[on.name] = on.value; });
      kept(sessionStorage, marksName, Object.keys(found).length ? JSON.stringify(found) : null);
    }
    if (marksName) {
      var before = $("[role=alert]") ? {} : JSON.parse(kept(sessionStorage, marksName) || "{}");
      marks.forEach(function (each) {
        each.querySelectorAll("input").forEach(function (input) { if (before[input.name] === input.value) input.checked = true; });
        each.addEventListener("change", keepMarks);
      });
      keepMarks();
      form.addEventListener("submit", function () { kept(sessionStorage, marksName, null); });
    }
    function atMark() { return marks.findIndex(function (each) { return each.contains(document.activeElement); }); }
    function nextMark() {
      if (!marks.length) return false;
      marks[(atMark() + 1) % marks.length].querySelector(":checked").focus();
      return true;
    }
    function setMark(value) {
      var each = marks[atMark()];
      if (!each) return false;
      var input = each.querySelector("[value=" + value + "]");
      if (input.checked) input = each.querySelector("[value='']");
      input.checked = true;
      input.focus();
      input.dispatchEvent(new Event("input", { bubbles: true })); // keeps the claim
      keepMarks();
      say(each.querySelector("legend").textContent + " " + (input.value || "not marked"));
      return true;
    }

    // -- the claim: typing keeps it, its end is said ----------------------------------------------
    var lease = $("[data-lease]");
    if (lease && form) {
      var ends = Date.now() + 1000 * Number(lease.dataset.lease), length = Math.max(60, Number(lease.dataset.lease)), asked = 0, warned = false;
      var keep = function () {
        if (Date.now() - asked < 60000) return;
        asked = Date.now();
        fetch(form.dataset.keep, { method: "POST", headers: { "Content-Type": "application/x-www-form-urlencoded" } })
          .then(function (r) { if (r.ok) { ends = Date.now() + 1000 * length; warned = false; } });
      };
      document.addEventListener("input", keep);
      setInterval(function () {
        var left = Math.max(0, Math.round((ends - Date.now()) / 1000));
        lease.textContent = left >= 60 ? Math.floor(left / 60) + " min" : left + " s";
        if (left <= 60 && !warned) { warned = true; say("Your claim ends in a minute. Typing keeps it."); }
      }, 1000);
    }

    // -- the queue: nothing moves under the reader, new cases wait behind a line, claims change in their cells -----
    var list = $("main[data-live]"), pill = $("#new"), rows = $$("tr[data-case]");
    if (list && pill) setInterval(function () {
      if (document.hidden) return;
      var ids = rows.map(function (row) { return row.dataset.case; }).join(",");
      fetch(list.dataset.live + "?since=" + encodeURIComponent(list.dataset.since) + "&ids=" + ids)
        .then(function (r) { return r.ok ? r.json() : { new: 0, rows: {} }; })
        .then(function (found) {
          rows.forEach(function (row) {
            var cell = row.querySelector("[data-who]"), words = found.rows[row.dataset.case];
            if (!cell || !words || words === cell.dataset.who) return;
            cell.textContent = cell.dataset.who = words;
          });
          if (!found.new) return;
          pill.hidden = false;
          pill.firstElementChild.textContent = found.new + (found.new === 1 ? " new case. Show it" : " new cases. Show them");
        }).catch(function () { /* asked again soon */ });
    }, 10000);

    // -- how the answer is shaded stays as the reviewer chose it ----------------------------------------
    $$("[data-shades] input").forEach(function (input) {
      if (input.value === kept(localStorage, "guard-shade")) input.checked = true;
      input.addEventListener("change", function () { kept(localStorage, "guard-shade", input.value); });
    });

    // -- keys -----------------------------------------------------------------------------------------
    var links = $$(".queue .q a");
    function move(step) {
      if (links.length) { links[Math.max(0, Math.min(links.length - 1, links.indexOf(document.activeElement) + step))].focus(); return true; }
      if (step > 0) return press("[data-next]");
      history.back();
      return true;
    }
    function press(selector) { var e = $(selector); if (!e || e.disabled) return false; e.click(); return true; }
    function decides(key) { return Date.now() - shown > 300 && press("[data-key='" + key + "']"); } // no double press decides an unseen case

    document.addEventListener("keydown", function (event) {
      var typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) && !/^(radio|checkbox)$/.test(event.target.type);
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { if (press("[data-save]")) event.preventDefault(); return; }
      if (event.key === "Escape" && typing) { event.target.blur(); return; }
      if (event.repeat || event.isComposing) return; // a key held down decides once, not once a case
      if (typing || event.ctrlKey || event.metaKey || event.altKey || (help && help.open)) return;
      if (single && !single.checked) return;
      var done = true;
      switch (event.key) {
        case "j": done = move(1); break;
        case "k": done = move(-1); break;
        case "a": case "e": case "r": case "s": case "1": case "2": done = decides(event.key); break;
        case "u": done = press("[data-key=u]"); break;
        case "n": done = openNote(); break;
        case "m": done = nextMark(); break;
        case "x": done = setMark("wrong"); break;
        case "c": done = setMark("right"); break;
        case "/": done = !!$("input[type=search]"); if (done) $("input[type=search]").focus(); break;
        case "?": if (help) help.showModal(); break;
        default: done = false;
      }
      if (done) event.preventDefault();
    });
  });
})();
