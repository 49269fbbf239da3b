// What the page can do beyond what it says: bring in what is new, keep its times true, search while one types, copy.
// The server renders everything; here its next rendering is laid over the open page, so that nothing that is
// being typed, read or pointed at moves.
"use strict";

(() => {
    const root = document.documentElement;
    const events = document.body.dataset.events;
    /** How long nothing new is fetched after something was, in milliseconds. */
    const REST = 500;
    /** How long a page may be as it is, although nothing happens: the plot moves on. */
    const STALE = 60_000;
    /** How long to wait for another letter. */
    const TYPING = 250;

    // Times

    /** The same as the server says it; seconds from now on. */
    const relative = (seconds) => {
        const far = Math.abs(seconds);
        if (far < 5) return "just now";
        const [size, unit] = far < 60 ? [far, "s"]
            : far < 3600 ? [far / 60, "min"]
            : far < 86400 ? [far / 3600, "h"]
            : far < 2 * 86400 ? [1, "day"] : [far / 86400, "days"];
        const span = `${Math.trunc(size)}\u00a0${unit}`;
        return seconds < 0 ? `${span} ago` : `in ${span}`;
    };

    const say = (element, text) => {
        if (element.textContent !== text) element.textContent = text;
    };

    /** By how much this machine's clock differs from the server's, in milliseconds. */
    let skew = 0;

    const tellTimes = () => {
        const now = Date.now() + skew;
        for (const time of document.querySelectorAll("time[data-relative]")) {
            say(time, relative(Math.trunc((Date.parse(time.dateTime) - now) / 1000)));
        }
    };

    /** Where the reader is, if that is not UTC. */
    const localise = () => {
        const hours = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
        for (const text of document.querySelectorAll("[data-clock]")) {
            say(text, hours.format(Number(text.dataset.clock) * 1000));
        }
        const zone = new Intl.DateTimeFormat("en", { timeZoneName: "short" }).formatToParts(0)
            .find((part) => part.type === "timeZoneName");
        for (const text of document.querySelectorAll("[data-zone]")) say(text, zone ? zone.value : "UTC");
    };

    const setClock = () => {
        const now = document.querySelector("#live time");
        if (now) skew = Date.parse(now.dateTime) - Date.now();
        tellTimes();
        localise();
    };

    // Laying a rendering over the page

    const nameOf = (node) => (node.nodeType === Node.ELEMENT_NODE && node.id) || null;

    const attributes = (old, next) => {
        for (const { name } of [...old.attributes]) {
            // What the reader has opened stays open.
            if (!next.hasAttribute(name) && !(name === "open" && old.localName === "details")) old.removeAttribute(name);
        }
        for (const { name, value } of next.attributes) {
            if (old.getAttribute(name) !== value) old.setAttribute(name, value);
        }
    };

    const field = (old, next) => {
        // What is being typed stays.
        if (old === document.activeElement) return;
        if (old.localName === "select") {
            old.value = next.value;
        } else if (old.localName === "input" && old.value === old.defaultValue) {
            old.value = next.getAttribute("value") ?? "";
        }
    };

    const lay = (old, next) => {
        // What was not done is said until something else is done.
        if (old.id === "outcome" && "kept" in old.dataset) return;
        if (old.nodeType === Node.TEXT_NODE) {
            if (old.data !== next.data) old.data = next.data;
            return;
        }
        if (old.nodeType !== Node.ELEMENT_NODE) return;
        field(old, next);
        attributes(old, next);
        layChildren(old, next);
    };

    const layChildren = (old, next) => {
        const named = new Map();
        for (const child of old.children) if (child.id) named.set(child.id, child);
        let place = old.firstChild;
        for (const wanted of [...next.childNodes]) {
            const name = nameOf(wanted);
            const found = name ? named.get(name)
                : place && !nameOf(place) && place.nodeName === wanted.nodeName ? place : null;
            if (found && found.nodeName === wanted.nodeName) {
                if (found === place) place = place.nextSibling;
                else old.insertBefore(found, place);
                lay(found, wanted);
            } else {
                const added = document.importNode(wanted, true);
                old.insertBefore(added, place);
                if (name) added.classList.add("is-new");
            }
        }
        while (place) {
            const gone = place;
            place = place.nextSibling;
            gone.remove();
        }
    };

    const parse = (html) => new DOMParser().parseFromString(html, "text/html");

    const show = (next) => {
        if (!next.body.dataset.events) {
            // Not a page of the overview: signed out, or what was shown is gone. The reader should see it whole.
            location.reload();
            return;
        }
        const focused = document.activeElement;
        document.title = next.title;
        layChildren(document.body, next.body);
        if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
        setClock();
    };

    // Fetching

    let asked = 0;

    /** Shows the page at `url`, unless another one is wanted meanwhile. */
    const go = async (url) => {
        const number = ++asked;
        const answer = await fetch(url, { credentials: "same-origin", headers: { accept: "text/html" } });
        const next = parse(await answer.text());
        if (number === asked) show(next);
    };

    let resting = false;
    let wanted = false;

    const renew = async () => {
        wanted = true;
        if (resting || document.hidden) return;
        wanted = false;
        resting = true;
        try {
            await go(location.href.split("#")[0]);
        } catch {
            // The server is away; the stream of events says when it is back.
        }
        setTimeout(() => {
            resting = false;
            if (wanted) renew();
        }, REST);
    };

    const listen = () => {
        const stream = new EventSource(events);
        stream.onopen = () => { root.dataset.live = "on"; };
        stream.onmessage = renew;
        stream.onerror = () => {
            root.dataset.live = "lost";
            if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
        };
    };

    // The list of phones in place

    const turnTo = (url) => {
        history.pushState(null, "", url);
        return go(url.split("#")[0]).catch(() => location.assign(url));
    };

    const queryOf = (form) => {
        const said = [...new FormData(form)].filter(([, value]) => value !== "");
        const query = new URLSearchParams(said).toString();
        return query ? `/?${query}` : "/";
    };

    let typing;

    document.addEventListener("input", (event) => {
        const form = event.target.closest(".search");
        if (!form) return;
        clearTimeout(typing);
        typing = setTimeout(() => {
            const url = queryOf(form);
            history.replaceState(null, "", url);
            go(url).catch(() => {});
        }, event.target.localName === "select" ? 0 : TYPING);
    });

    document.addEventListener("click", (event) => {
        const copy = event.target.closest(".copy");
        if (copy) {
            copyText(copy);
            return;
        }
        const link = event.target.closest("#phones a, .figures a");
        const isPlain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
        const list = document.getElementById("phones");
        if (!link || !isPlain || !list || link.pathname !== "/") return;
        event.preventDefault();
        turnTo(link.href);
        if (!link.closest("#phones") || link.rel) list.scrollIntoView();
    });

    document.addEventListener("submit", (event) => {
        const form = event.target;
        if (form.matches(".search")) {
            event.preventDefault();
            clearTimeout(typing);
            turnTo(queryOf(form));
        } else if (form.matches(".allow")) {
            event.preventDefault();
            change(form);
        }
    });

    addEventListener("popstate", () => go(location.href.split("#")[0]).catch(() => location.reload()));

    // Letting a phone in

    const change = async (form) => {
        const outcome = document.getElementById("outcome");
        const button = form.querySelector("button");
        const body = new URLSearchParams([...new FormData(form)]);
        button.disabled = true;
        delete outcome.dataset.kept;
        asked += 1;
        try {
            const answer = await fetch(form.action, { method: "POST", credentials: "same-origin", body });
            const next = parse(await answer.text());
            if (answer.ok) {
                // Where the form would have led: it says what came of it.
                history.replaceState(null, "", answer.url);
                asked += 1;
                show(next);
            } else if (answer.status === 401) {
                location.assign("/sign-in");
            } else {
                outcome.replaceChildren(...next.querySelectorAll(".outcome"));
                outcome.dataset.kept = "";
            }
            outcome.scrollIntoView({ block: "nearest" });
        } catch {
            // The server did not answer; the browser says so better.
            form.submit();
        }
        button.disabled = false;
    };

    // Copying a command

    const copyText = async (button) => {
        try {
            await navigator.clipboard.writeText(button.dataset.copy);
            button.textContent = "Copied";
            setTimeout(() => { button.textContent = "Copy"; }, 2000);
        } catch {
            // Without leave to write there, it is marked for the reader to copy.
            getSelection().selectAllChildren(button.previousElementSibling);
        }
    };

    root.dataset.live = "off";
    setClock();
    if (events) {
        listen();
        setInterval(tellTimes, 1000);
        setInterval(renew, STALE);
        document.addEventListener("visibilitychange", () => { if (wanted) renew(); });
    }
})();
