//! Whole pages.

use super::*;
use crate::admin::operators::Scope;
use crate::admin::snapshot::{
    ActivityView, CertificateView, ConstituencyView, DenialView, DeniedPhone, NamedFiles, NetworkView, PhoneCounts,
    PhoneRequestView, PhoneSort, PhoneView, SectionQuery, SilentTogether, UnprovenView,
};
use crate::certificate::ConditionLevel;
use crate::phone_history::PhoneState;

const NOW: i64 = 1_795_552_267;
const DAY: i64 = 86_400;

/// An untrusted text. It must stay text wherever it occurs.
const HOSTILE: &str = "</td><script>alert(1)</script>\" onmouseover=\"x' &amp;\u{202e}\u{2066}\u{1b}[2J\u{0}\u{9b}";
const HARMLESS: &str = "kitchen / hall";

fn phone(mac: &str, state: PhoneState, text: &str) -> PhoneView {
    PhoneView {
        constituency: "ote".parse().unwrap(),
        mac: mac.parse().unwrap(),
        state,
        note: text.to_owned(),
        first_seen: Some(NOW - 40 * DAY),
        last_seen: Some(NOW - 180),
        address: Some(text.to_owned()),
        model: Some(text.to_owned()),
        firmware: Some(text.to_owned()),
        tls: Some(text.to_owned()),
        tls_level: Some("legacy"),
        certificate_not_after: Some(NOW + 900 * DAY),
        configuration: Some((text.to_owned(), NOW - 181)),
        upload: Some((text.to_owned(), NOW - 179)),
        refusal: Some((text.to_owned(), NOW - 3 * DAY)),
        claimed: (state == PhoneState::LockedOut).then(|| (text.to_owned(), NOW - 60)),
        requests: 1234,
        refusals: 5,
        denied_everywhere: (state == PhoneState::Denied).then(|| denial(text)),
    }
}

fn denial(text: &str) -> DenialView {
    DenialView { by: text.to_owned(), at: Some(NOW - 2 * DAY), note: text.to_owned() }
}

fn unproven(text: &str) -> UnprovenView {
    UnprovenView {
        constituency: "ote".parse().unwrap(),
        mac: "00005e0053aa".parse().unwrap(),
        certificate_sha256: Some(text.to_owned()),
        address: text.to_owned(),
        addresses: [text, "192.0.2.9"]
            .map(|from| NetworkView { address: from.to_owned(), first_seen: NOW - DAY, last_seen: NOW - 60 })
            .into(),
        first_seen: NOW - DAY,
        last_seen: NOW - 60,
        count: 3,
        reason: text.to_owned(),
    }
}

fn constituency(name: &str, text: &str, is_served: bool) -> ConstituencyView {
    ConstituencyView {
        name: name.to_owned(),
        description: text.to_owned(),
        url: is_served.then(|| text.to_owned()),
        problem: (!is_served).then(|| text.to_owned()),
        warnings: is_served.then(|| text.to_owned()).into_iter().collect(),
        known: is_served.then_some(3),
        counts: PhoneCounts::default(),
        seen_lately: 2,
        refused: 1,
        not_allowable: (!is_served).then(|| text.to_owned()),
    }
}

/// An overview in which every untrusted text is `text`.
fn overview(text: &str) -> Overview {
    Overview {
        now: NOW,
        version: "0.1.0",
        domain: text.to_owned(),
        config: None,
        started: NOW - 12 * DAY,
        not_ready: Some(text.to_owned()),
        certificates: vec![CertificateView {
            key: text.to_owned(),
            names: vec![text.to_owned()],
            issuer: Some(text.to_owned()),
            not_before: Some(NOW - 45 * DAY),
            not_after: Some(NOW + 45 * DAY),
            source: "acme",
            level: ConditionLevel::Warning,
            state: "renewal_overdue",
            problem: Some(text.to_owned()),
            next_attempt: Some(NOW + 15 * DAY),
            step: Some(text.to_owned()),
            last_error: Some(text.to_owned()),
            action_required: true,
        }],
        constituencies: vec![constituency("ote", text, true), constituency(text, text, false)],
        counts: PhoneCounts { known: 3, well: 1, silent: 1, waiting: 1, refused: 1, ..PhoneCounts::default() },
        waiting: vec![phone("00005e0053aa", PhoneState::Waiting, text)],
        unproven: vec![unproven(text)],
        denied: vec![DeniedPhone { mac: "00005e0053ff".parse().unwrap(), denial: denial(text) }],
        silent_together: Vec::new(),
        activity: ActivityView {
            step_s: 600,
            since: NOW - DAY,
            served: vec![5; 144],
            refused: vec![1; 144],
            handshakes: vec![2; 144],
        },
        problems: vec![format!("{text}: {text}")],
        notify_failure: Some(text.to_owned()),
    }
}

fn query(text: &str) -> PhoneQuery {
    PhoneQuery {
        search: text.to_owned(),
        constituency: Some(text.to_owned()),
        limit: 2,
        offset: 2,
        ..PhoneQuery::default()
    }
}

fn phones(text: &str) -> PhonePage {
    let states = PhoneState::ALL.into_iter().zip(0..);
    let phones = states.map(|(state, n)| phone(&format!("00005e0053{n:02x}"), state, text)).collect();
    PhonePage { total: 50_000, matching: 12_345, phones }
}

fn operator(is_read_only: bool) -> Operator {
    Operator { name: "anna".to_owned(), scope: Scope::All, is_read_only }
}

fn home(overview: &Overview, phones: &PhonePage, query: &PhoneQuery, is_signed_in: bool) -> String {
    let anna = operator(false);
    let operator = is_signed_in.then_some(&anna);
    let sections = &SectionQuery::default();
    render(&View { overview, phones, query, sections, operator, flash: None })
}

fn history(text: &str, state: PhoneState) -> PhoneHistoryView {
    let request = |status: Option<u16>, reason: Option<&str>| PhoneRequestView {
        time_ms: NOW * 1000 - 1500,
        address: text.to_owned(),
        method: Some(text.to_owned()),
        target: Some(text.to_owned()),
        status,
        bytes: 1840,
        duration_ms: 3.21,
        reason: reason.map(str::to_owned),
        is_named: false,
    };
    let requests = vec![request(Some(200), None), request(Some(403), Some(text)), request(None, Some(text))];
    let named = NamedFiles { master: text.to_owned(), files: vec![text.to_owned()], missing: vec![text.to_owned()] };
    PhoneHistoryView { phone: phone("00005e0053aa", state, text), named: Some(named), requests }
}

/// Every page in every form, with `text` as every untrusted text.
fn all_pages(text: &str) -> Vec<String> {
    let overview = overview(text);
    let mut pages: Vec<String> =
        [false, true].map(|is_signed_in| home(&overview, &phones(text), &query(text), is_signed_in)).to_vec();
    for state in PhoneState::ALL {
        let anna = operator(false);
        pages.extend([None, Some(&anna)].map(|operator| render_phone(&overview, &history(text, state), operator)));
    }
    pages
}

/// The names of a page's elements and attributes, in order, without texts and values.
fn skeleton(page: &str) -> Vec<&str> {
    tags(page).flat_map(names).collect()
}

/// The tags, without `<` and `>`.
fn tags(page: &str) -> impl Iterator<Item = &str> {
    page.split('<').skip(1).map(|rest| rest.split_once('>').unwrap().0)
}

/// The words of a tag outside of quoted values.
fn names(tag: &str) -> impl Iterator<Item = &str> {
    tag.split('"').step_by(2).flat_map(str::split_whitespace)
}

#[test]
fn foreign_text_is_escaped_on_every_page() {
    let (hostile, harmless) = (all_pages(HOSTILE), all_pages(HARMLESS));
    assert_eq!(hostile.len(), 22);
    for (hostile, harmless) in hostile.iter().zip(&harmless) {
        assert!(hostile.contains("&lt;script&gt;") && !hostile.contains("<script>"));
        assert!(skeleton(hostile) == skeleton(harmless), "other elements or attributes: {hostile}");
        let is_driving =
            |letter: char| letter.is_control() || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        assert_eq!(hostile.chars().find(|letter| is_driving(*letter)), None);
    }
    let shown = hostile.iter().map(|page| page.matches("&lt;script&gt;").count()).sum::<usize>();
    assert!(shown > 300, "only {shown} hostile texts were shown: does this test look at everything?");
}

#[test]
fn pages_have_no_inline_code_and_no_external_resources() {
    let pages = [
        all_pages(HARMLESS),
        vec![render_sign_in(None), render_sign_in(Some("Wrong token.")), render_failure("Not changed", HOSTILE)],
    ]
    .concat();
    for page in pages {
        for tag in tags(&page) {
            assert!(!names(tag).any(|name| name == "style=" || name.starts_with("on")), "{tag}");
            for link in ["href=\"", "src=\"", "action=\""] {
                let target = tag.split_once(link).map(|(_, rest)| rest.split('"').next().unwrap());
                assert!(target.is_none_or(|it| it.starts_with('/') || it.starts_with('#')), "{tag}");
            }
        }
        assert_eq!(page.matches("<script ").count(), 1);
        assert!(!assets::STYLE.content.contains("url(") && !assets::STYLE.content.contains("@import"));
    }
}

#[test]
fn ids_are_unique_and_labels_refer_to_them() {
    for page in all_pages(HARMLESS) {
        let values = |attribute: &str| -> Vec<String> {
            let begin = format!(" {attribute}=\"");
            page.split(begin.as_str()).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
        };
        let mut ids = values("id");
        ids.sort();
        let count = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), count, "{ids:?}");
        let named = [values("for"), values("aria-labelledby")].concat();
        assert!(named.len() > 2);
        for name in named {
            assert!(ids.contains(&name), "{name} names nothing");
        }
    }
}

#[test]
fn only_authenticated_phones_have_an_allow_button() {
    let overview = overview(HARMLESS);
    let nobody = PhonePage { total: 0, matching: 0, phones: Vec::new() };
    let page = |overview: &Overview| home(overview, &nobody, &PhoneQuery::default(), true);
    assert_eq!(page(&overview).matches("action=\"/allow\"").count(), 1, "one phone waits, one certificate is unproven");
    let mut unwritable = overview.clone();
    for constituency in &mut unwritable.constituencies {
        constituency.not_allowable = Some("the folder is not ours to write".to_owned());
    }
    let page = page(&unwritable);
    assert!(!page.contains("action=\"/allow\"") && page.contains("the folder is not ours to write"));
    assert!(page.contains("data-copy=\"provost allow 00005e0053aa --constituency ote --note &quot;…&quot;\""));
}

#[test]
fn sign_out_button_is_shown_only_in_a_session() {
    let overview = overview(HARMLESS);
    let home = |is_signed_in| home(&overview, &phones(HARMLESS), &query(HARMLESS), is_signed_in);
    assert_eq!([false, true].map(|it| home(it).matches("action=\"/sign-out\"").count()), [0, 1]);
}

#[test]
fn read_only_operator_sees_no_button_that_changes_anything() {
    let (overview, phones, query) = (overview(HARMLESS), phones(HARMLESS), query(HARMLESS));
    let buttons = |is_read_only: bool| {
        let anna = operator(is_read_only);
        let sections = &SectionQuery::default();
        let operator = Some(&anna);
        let view = View { overview: &overview, phones: &phones, query: &query, sections, operator, flash: None };
        let waiting = render_phone(&overview, &history(HARMLESS, PhoneState::Waiting), Some(&anna));
        [render(&view), waiting].map(|page| {
            assert_eq!(page.contains("anna (read-only)"), is_read_only);
            page.matches("method=\"post\"").count() - page.matches("action=\"/sign-out\"").count()
        })
    };
    assert_eq!(buttons(true), [0, 0]);
    let [home, phone] = buttons(false);
    assert!(home > 0 && phone > 0, "{home} {phone}");
}

#[test]
fn commands_quote_the_path_of_the_configuration() {
    let mut overview = overview(HARMLESS);
    let nobody = PhonePage { total: 0, matching: 0, phones: Vec::new() };
    let commands = |overview: &Overview| {
        let mut pages = home(overview, &nobody, &PhoneQuery::default(), false);
        let denied = PhoneView { denied_everywhere: None, ..phone("00005e00530c", PhoneState::Denied, HARMLESS) };
        let of = |state| phone("00005e00530c", state, HARMLESS);
        for phone in [of(PhoneState::Well), of(PhoneState::Denied), denied] {
            pages += &render_phone(
                overview,
                &PhoneHistoryView { phone, named: None, requests: Vec::new() },
                Some(&operator(false)),
            );
        }
        pages +=
            &home(&Overview { constituencies: Vec::new(), ..overview.clone() }, &nobody, &PhoneQuery::default(), true);
        let copied = pages.split("data-copy=\"").skip(1).filter_map(|rest| rest.split('"').next());
        copied.map(str::to_owned).collect::<Vec<_>>()
    };
    for (file, argument) in [
        ("/etc/provost/provost.json", " --config /etc/provost/provost.json"),
        ("/srv/my phones/$HOME.json", " --config '/srv/my phones/$HOME.json'"),
        ("/srv/\"it's\".json", " --config &quot;/srv/\\&quot;it's\\&quot;.json&quot;"),
    ] {
        overview.config = Some(file.to_owned());
        let commands = commands(&overview);
        for what in [
            "allow 00005e0053aa",
            "allow 00005e00530c",
            "deny 00005e00530c",
            "undeny 00005e00530c",
            "undeny MAC",
            "allow MAC",
            "constituency add NAME",
        ] {
            assert!(
                commands.iter().any(|command| command.starts_with(&format!("provost {what}"))),
                "{what}: {commands:?}"
            );
        }
        assert!(commands.iter().all(|command| command.ends_with(argument)), "{argument}: {commands:?}");
    }
    overview.config = None;
    let commands = commands(&overview);
    assert!(commands.len() >= 5 && commands.iter().all(|command| !command.contains("--config")), "{commands:?}");
}

#[test]
fn empty_sections_show_the_next_step() {
    let overview = Overview {
        certificates: Vec::new(),
        constituencies: Vec::new(),
        counts: PhoneCounts::default(),
        waiting: Vec::new(),
        unproven: Vec::new(),
        silent_together: Vec::new(),
        activity: ActivityView::default(),
        problems: Vec::new(),
        notify_failure: None,
        not_ready: None,
        ..overview(HARMLESS)
    };
    let nobody = PhonePage { total: 0, matching: 0, phones: Vec::new() };
    let page = home(&overview, &nobody, &PhoneQuery::default(), false);
    for next in [
        "Ready; no known phone yet",
        "data-copy=\"provost constituency add NAME\"",
        "data-copy=\"provost allow MAC --constituency NAME",
        "No phone is waiting.",
        "No requests during the last day.",
    ] {
        assert!(page.contains(next), "{next}");
    }
    let nothing_found = PhonePage { total: 3, matching: 0, phones: Vec::new() };
    let page = home(&overview, &nothing_found, &PhoneQuery { search: "x".to_owned(), ..PhoneQuery::default() }, false);
    assert!(page.contains("No phone matches. <a href=\"/#phones\">Show all</a>"));
}

#[test]
fn summary_counts_problems_and_lists_the_worst_first() {
    let mut overview = overview(HARMLESS);
    overview.not_ready = None;
    overview.notify_failure = None;
    // The folder's own problem is not repeated.
    overview.problems.push("log lines were lost".to_owned());
    let none = phones(HARMLESS);
    let page = home(&overview, &none, &PhoneQuery::default(), false);
    // A problem, a certificate, a folder, a warning of a policy, a waiting phone, a refused phone.
    assert!(page.contains("6 problems need attention"));
    let order: Vec<&str> =
        page.split("<li class=\"").skip(1).filter_map(|rest| rest.split('"').next()).take(6).collect();
    assert_eq!(order, ["bad", "bad", "asks", "fair", "fair", "fair"]);
    overview.problems.clear();
    overview.certificates.clear();
    overview.constituencies.truncate(1);
    overview.constituencies[0].warnings.clear();
    overview.waiting.clear();
    overview.counts.waiting = 0;
    assert!(home(&overview, &none, &PhoneQuery::default(), false).contains("1 problem needs attention"));
    overview.counts.refused = 0;
    assert!(home(&overview, &none, &PhoneQuery::default(), false).contains("No problems"));
}

#[test]
fn claims_for_many_known_phones_are_one_unproven_problem() {
    let mut overview = overview(HARMLESS);
    let headlines = |overview: &Overview| {
        let page = home(overview, &phones(HARMLESS), &PhoneQuery::default(), false);
        page.matches("may be locked out").count()
    };
    assert_eq!(headlines(&overview), 0);
    for count in [1, 5000] {
        overview.counts.locked_out = count;
        assert_eq!(headlines(&overview), 1);
    }
    let page = home(&overview, &phones(HARMLESS), &PhoneQuery::default(), false);
    assert!(page.contains("state=locked_out") && page.contains("The claim is unproven"), "{page}");
    let own = render_phone(&overview, &history(HARMLESS, PhoneState::LockedOut), None);
    assert!(own.contains("locked out?") && own.contains("unproven claim: <bdi>"), "{own}");
    assert!(!own.contains(">well<"), "{own}");
}

#[test]
fn silent_constituencies_are_listed_and_many_are_one_line() {
    let silences = |count: usize| {
        let mut overview = overview(HARMLESS);
        let silence = |number| SilentTogether {
            constituency: format!("customer-{number}").parse().unwrap(),
            silent: 12,
            of: 14,
            since: NOW - 3 * 3600,
        };
        overview.silent_together = (0..count).map(silence).collect();
        home(&overview, &phones(HARMLESS), &PhoneQuery::default(), false)
    };
    let page = silences(2);
    for part in ["href=\"/?constituency=customer-1#phones\"", ">customer-0</a>: 12 of 14 phones", "3\u{a0}h ago"] {
        assert!(page.contains(part), "{part}");
    }
    assert_eq!((page.matches("fell silent together").count(), page.contains("No problems")), (2, false));
    let many = silences(40);
    assert_eq!((many.matches("fell silent").count(), many.contains("In 40 constituencies most phones")), (1, true));
}

#[test]
fn long_list_is_paged_and_sorted_by_its_headings() {
    let query = PhoneQuery { limit: 8, offset: 8, sort: PhoneSort::LastSeen, ..PhoneQuery::default() };
    let mut phones = phones(HARMLESS);
    phones.phones.truncate(query.limit);
    let page = home(&overview(HARMLESS), &phones, &query, false);
    for part in [
        "9–16 of 12\u{202f}345",
        "Page 2 of 1\u{202f}544",
        "rel=\"prev\" href=\"/?sort=last_seen&amp;limit=8#phones\"",
        "rel=\"next\" href=\"/?sort=last_seen&amp;offset=16&amp;limit=8#phones\"",
        "aria-sort=\"ascending\"><a class=\"sort\" href=\"/?sort=last_seen&amp;reverse=1&amp;limit=8#phones\">Last seen",
        "href=\"/?sort=name&amp;limit=8#phones\">Phone",
    ] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn list_far_past_its_end_says_so() {
    for limit in [1, 8] {
        let query = PhoneQuery { limit, offset: usize::MAX, ..PhoneQuery::default() };
        let mut phones = phones(HARMLESS);
        phones.phones.clear();
        let page = home(&overview(HARMLESS), &phones, &query, false);
        assert!(page.contains("This page is past the end of the list."), "{limit}: {page}");
    }
}

/// An overview of a large fleet: every list is long, and every tenth constituency has a problem.
fn large_overview(constituencies: usize) -> Overview {
    let text = "Branch office, second floor, the room by the stairs";
    let mut overview = overview(text);
    overview.not_ready = None;
    overview.constituencies = (0..constituencies)
        .map(|number| {
            let mut one = constituency(&format!("customer-{number:05}"), text, number % 10 != 0);
            one.warnings.retain(|_| number % 25 == 0);
            one
        })
        .collect();
    overview.problems = overview
        .constituencies
        .iter()
        .filter_map(|it| Some((&it.name, it.problem.as_ref()?)))
        .map(|(name, problem)| format!("{name}: {problem}"))
        .collect();
    overview.waiting = (0..100).map(|n| phone(&format!("00005e0053{n:02x}"), PhoneState::Waiting, text)).collect();
    overview.counts.waiting = 5000;
    overview.unproven = (0..100).map(|_| unproven(text)).collect();
    let denied = |n| DeniedPhone { mac: format!("00005e00{n:04x}").parse().unwrap(), denial: denial(text) };
    overview.denied = (0..1000).map(denied).collect();
    overview.silent_together = (0..constituencies / 100)
        .map(|number| SilentTogether {
            constituency: format!("customer-{:05}", number * 10 + 1).parse().unwrap(),
            silent: 12,
            of: 14,
            since: NOW - 3 * 3600,
        })
        .collect();
    overview
}

#[test]
fn page_of_10000_constituencies_has_less_than_100_kilobytes() {
    let overview = large_overview(10_000);
    let text = "Reception";
    let page_of = |count: u32| PhonePage {
        total: 1_000_000,
        matching: 1_000_000,
        phones: (0..count).map(|n| phone(&format!("00005e0053{n:02x}"), PhoneState::Refused, text)).collect(),
    };
    let query = PhoneQuery::of_page("").unwrap();
    let page = home(&overview, &page_of(u32::try_from(query.limit).unwrap()), &query, true);
    assert!(page.len() < 100_000, "{} bytes", page.len());
    // It grows with no list.
    let small = home(&large_overview(1000), &page_of(50), &query, true);
    assert!(page.len() < small.len() + 1000, "{} bytes, {} with a tenth of it", page.len(), small.len());
    // The totals are there, and what needs an operator comes first.
    assert!(page.contains("1\u{202f}195 more problems"), "{page}");
    let names: Vec<&str> = rows_of(&page, "constituencies");
    assert_eq!((names.len(), names[0], names[14]), (15, "customer-00000", "customer-00140"));
}

/// The names in the rows of the table of `section`.
fn rows_of<'a>(page: &'a str, section: &str) -> Vec<&'a str> {
    let section = page.split_once(&format!("<section id=\"{section}\"")).unwrap().1.split_once("</section>").unwrap().0;
    let cells = section.split("<th scope=\"row\">").skip(1);
    cells.map(|cell| cell.split_once("<bdi>").unwrap().1.split_once("</bdi>").unwrap().0).collect()
}

#[test]
fn every_constituency_is_on_one_part_of_the_list() {
    let overview = large_overview(1000);
    let none = PhonePage { total: 0, matching: 0, phones: Vec::new() };
    let mut link = "/?folder_offset=0#constituencies".to_owned();
    let mut seen: Vec<String> = Vec::new();
    let mut parts = 0;
    loop {
        let query = link.strip_prefix("/?").unwrap().split('#').next().unwrap().replace("&amp;", "&");
        let sections = &SectionQuery::parse(&query).unwrap();
        let phones = &PhoneQuery::of_page(&query).unwrap();
        let view = View { overview: &overview, phones: &none, query: phones, sections, operator: None, flash: None };
        let page = render(&view);
        seen.extend(rows_of(&page, "constituencies").into_iter().map(str::to_owned));
        parts += 1;
        let constituencies = page.split_once("<section id=\"constituencies\"").unwrap().1;
        let constituencies = constituencies.split_once("</section>").unwrap().0;
        let Some((_, next)) = constituencies.split_once("rel=\"next\" href=\"") else { break };
        link = next.split('"').next().unwrap().to_owned();
    }
    let troubled = seen.iter().take(100).filter(|name| name.ends_with('0')).count();
    assert_eq!((parts, seen.len(), troubled), (67, 1000, 100), "those that are not served come first");
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 1000);
    // The filter finds by name and by description, and is part of the links.
    let sections = &SectionQuery { folder: "OFFICE".to_owned(), folder_offset: 45, ..SectionQuery::default() };
    let query = &PhoneQuery::of_page("").unwrap();
    let view = View { overview: &overview, phones: &none, query, sections, operator: None, flash: None };
    let page = render(&view);
    assert!(
        page.contains("46–60 of 1\u{202f}000")
            && page.contains("href=\"/?folder=OFFICE&amp;folder_offset=60#constituencies\""),
        "{page}"
    );
    let sections = &SectionQuery { folder: "customer-00123".to_owned(), ..SectionQuery::default() };
    let page = render(&View { sections, ..view });
    assert_eq!(rows_of(&page, "constituencies"), ["customer-00123"]);
}
