// Live features of the page: updates, relative times, search while typing, copying. The server renders everything. The
// script merges the next rendering into the open page, so that nothing moves that the reader types, reads or points at.
"use strict";

(() => {
    const root = document.documentElement;
    const events = document.body.dataset.events;
    /** The least time between two updates, in milliseconds. */
    const REST = 500;
    /** The time after which the page is updated without an event, so that the chart advances. */
    const STALE = 60_000;
    /** The debounce of typing. */
    const TYPING = 250;

    // Times

    /** The same format as the server's; in seconds from now. */
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

    // Merging a rendering into the page

    const nameOf = (node) => (node.nodeType === Node.ELEMENT_NODE && node.id) || null;

    const attributes = (old, next) => {
        for (const { name } of [...old.attributes]) {
            // An element that the reader opened stays open.
            if (!next.hasAttribute(name) && !(name === "open" && old.localName === "details")) old.removeAttribute(name);
        }
        for (const { name, value } of next.attributes) {
            if (old.getAttribute(name) !== value) old.setAttribute(name, value);
        }
    };

    const field = (old, next) => {
        // A field with focus keeps its value.
        if (old === document.activeElement) return;
        if (old.localName === "select") {
            old.value = next.value;
        } else if (old.localName === "input" && old.value === old.defaultValue) {
            old.value = next.getAttribute("value") ?? "";
        }
    };

    const lay = (old, next) => {
        // A failure stays until the next action.
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
            // Not a page with data: the session has ended, or the page is gone. Reload it whole.
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

    /** Shows the page at `url`, unless another one is requested meanwhile. */
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
            // The server is unreachable. The event stream reconnects.
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

    // Paging the list of phones in place

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

    // Allowing a phone

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
                // The URL to which the form would redirect: it has the flash message.
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
            // No response. Submit the form, so that the browser shows the error.
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
            // Without permission for the clipboard, select the text for the reader.
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
