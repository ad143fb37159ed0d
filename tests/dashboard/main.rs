//! The dashboard as a person sees it: in a real browser, with real sites behind it.

#![cfg(test)]
#![expect(
    unreachable_pub,
    reason = "a test binary is reached by nobody: `pub` tells its modules apart well enough"
)]

mod browser;
#[path = "../support/mod.rs"]
mod support;

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use browser::Browser;
use support::{
    Cluster, Options,
    session::{Session, bytes},
};

/// axe-core finds what people with a keyboard or a screen reader cannot use.
const AXE: &str = include_str!("axe/axe.min.js");

/// Times are measured: one browser at a time.
static TURN: Mutex<()> = Mutex::new(());

fn state_of(site: &str) -> String {
    format!(
        "[...document.querySelectorAll('tbody tr')].find(tr => tr.querySelector('th').textContent === '{site}')\
         ?.querySelector('.state').textContent"
    )
}

fn accessible(browser: &Browser, where_: &str) {
    browser.evaluate(AXE);
    let found = browser.evaluate(
        "axe.run().then(found => found.violations.map(rule => `${rule.id}: ${rule.nodes.map(node => node.html).join(' ')}`).join('\\n'))",
    );
    assert_eq!(found, "", "{where_}");
}

#[test]
fn the_fleet_is_shown_as_it_is() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stands =
        |latitude, longitude| format!("\n[location]\nlatitude = {latitude}\nlongitude = {longitude}\n");
    let mut cluster = Cluster::start(Options {
        primary_toml: stands(50.1, 8.7),
        site_toml: stands(19.1, 72.9),
        ..Options::default()
    });
    let pusher = Session::user(&cluster, &cluster.primary, &["team/app"]);
    pusher.push_image("team/app", "1", &[&bytes(50_000, 1)]);
    cluster.wait_complete();

    let browser = Browser::start(1400, 900);
    let home = format!("http://{}/", cluster.primary.admin());
    browser.open(&home);
    for site in ["frankfurt", "mumbai"] {
        browser.wait(&format!("{} === 'streaming'", state_of(site)));
    }
    assert_eq!(browser.evaluate("document.querySelector('[data-sum=sync]').textContent"), "2");
    assert_eq!(browser.evaluate("document.querySelector('#link').textContent"), "live");
    accessible(&browser, "fleet");
    browser.picture("fleet");

    browser.evaluate(
        "const search = document.querySelector('#search'); search.value = 'mum'; \
         search.dispatchEvent(new Event('input'))",
    );
    assert_eq!(browser.evaluate("document.querySelectorAll('tbody tr').length"), 1);

    browser.evaluate("location.hash = '#/image'");
    browser.wait("document.querySelector('#ref') !== null");
    browser.evaluate(
        "document.querySelector('#ref').value = 'team/app:1'; document.querySelector('form').requestSubmit()",
    );
    browser.wait("document.querySelector('#said').textContent.endsWith('is shown at 2 of 2 sites')");
    browser.evaluate("document.querySelector('#ref').value = 'team/app:none'; document.querySelector('form').requestSubmit()");
    browser.wait("document.querySelector('#said').textContent.endsWith('is shown at 0 of 2 sites')");
    accessible(&browser, "image");
    browser.picture("image");

    browser.evaluate("location.hash = '#/events'");
    browser.wait("document.querySelector('tbody')?.textContent.includes('team/app:1')");
    pusher.push_image("team/app", "live", &[&bytes(100, 2)]);
    browser.wait("document.querySelector('tbody tr').textContent.includes('team/app:live')");
    accessible(&browser, "events");
    browser.picture("events");

    // A chart has something to show once a sample was taken.
    browser.evaluate("location.hash = '#/site/mumbai'");
    browser.wait("document.querySelector('h2')?.textContent === 'mumbai'");
    browser.wait("document.querySelector('.chart path.data')?.getAttribute('d')");
    accessible(&browser, "site");
    browser.picture("site");

    browser.evaluate("location.hash = '#/fleet'");
    browser.wait(&format!("{} === 'streaming'", state_of("mumbai")));
    assert_eq!(browser.complaints(), Vec::<String>::new());
    cluster.site_mut("mumbai").kill();
    let cut = Instant::now();
    browser.wait(&format!("{} === 'disconnected'", state_of("mumbai")));
    let seen = cut.elapsed();
    eprintln!("a site that was killed is shown as disconnected after {seen:?}");
    assert!(seen < Duration::from_secs(1), "{seen:?}");
    let lag = "[...document.querySelectorAll('tbody tr')].find(tr => tr.querySelector('.bad')).children[2].textContent";
    assert_eq!(browser.evaluate(lag), "unknown", "never a frozen number");
    browser.picture("cut");

    // In the dark, and on a phone.
    let dark = serde_json::json!({ "features": [{ "name": "prefers-color-scheme", "value": "dark" }] });
    browser.call("Emulation.setEmulatedMedia", dark);
    accessible(&browser, "dark");
    browser.picture("dark");
    let phone = serde_json::json!({ "width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": true });
    browser.call("Emulation.setDeviceMetricsOverride", phone);
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), true);
    browser.picture("phone");
    assert_eq!(browser.complaints(), Vec::<String>::new());

    // Without the node nothing is shown as if it were of now.
    cluster.primary.kill();
    browser.wait("document.querySelector('#link').className === 'link lost'");
}

/// The figure of the site page whose title is `title`.
fn figure(title: &str) -> String {
    format!(
        "[...document.querySelectorAll('.chart')].find(of => of.querySelector('h3').textContent === '{title}')"
    )
}

#[test]
fn what_is_on_its_way_to_a_site_is_shown_and_charts_rise_and_fall() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let blob = bytes(20 * 1024 * 1024, 3);
    let cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        site_toml: "\n[[bandwidth]]\nlimit = '1MiB/s'\n".to_owned(),
        ..Options::default()
    });
    let pusher = Session::user(&cluster, &cluster.primary, &["team/app"]);
    let browser = Browser::start(1400, 1600);
    browser.open(&format!("http://{}/#/site/mumbai", cluster.primary.admin()));
    browser.wait("document.querySelector('#fills tbody')?.textContent === 'none'");
    pusher.push_image("team/app", "large", &[&blob]);

    browser.wait("document.querySelector('#missing tbody').textContent.startsWith('team/app')");
    browser.wait("document.querySelector('#fills progress')?.position > 0");
    let first = browser.evaluate("document.querySelector('#fills progress').position").as_f64().unwrap();
    browser.wait(&format!("document.querySelector('#fills progress')?.position > {first}"));
    browser.wait("document.querySelector('#recent tbody').textContent.includes('team/app:large')");
    let lag = figure("Lag until complete");
    browser.wait(&format!("{lag}.querySelector('svg').dataset.highest > 1"));
    accessible(&browser, "on its way");
    browser.picture("on-its-way");

    browser.wait("document.querySelector('#fills tbody').textContent === 'none'");
    browser.wait("document.querySelector('#missing tbody').textContent === 'none known'");
    browser.wait(&format!(
        "{lag}.querySelector('figcaption .quiet').textContent.startsWith('now 0 s; highest')"
    ));
    browser.wait(&format!("{}.querySelector('svg').dataset.highest > 1e5", figure("Bytes")));
    browser.wait(&format!("{}.querySelector('svg').dataset.highest > 2e7", figure("Store")));
    browser.picture("arrived");

    // Who pulls is counted.
    let puller = Session::user(&cluster, &cluster.sites[0], &["team/app"]);
    assert_eq!(puller.get("/v2/team/app/manifests/large").status, 200);
    browser.wait(&format!("{}.querySelector('svg').dataset.highest > 0", figure("Pulls")));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_listener_that_wants_its_token_is_given_it() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "let-me-in").unwrap();
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let config = std::fs::read_to_string(cluster.sites[0].config()).unwrap();
    let with_token = config.replace("[admin]\n", &format!("[admin]\ntoken_file = '{}'\n", token.display()));
    assert_ne!(with_token, config);
    std::fs::write(cluster.sites[0].config(), with_token).unwrap();
    cluster.sites[0].stop();
    cluster.sites[0].start();

    let browser = Browser::start(1200, 800);
    browser.open(&format!("http://{}/", cluster.sites[0].admin()));
    browser.wait("document.querySelector('#signin')?.open === true");
    accessible(&browser, "sign in");
    let give = |token: &str| {
        browser.evaluate(&format!(
            "document.querySelector('#token').value = '{token}'; \
             document.querySelector('#signin form').requestSubmit()"
        ));
    };
    give("wrong");
    browser.wait("!document.querySelector('#signin-error').hidden && document.querySelector('#signin').open");
    give("let-me-in");
    browser.wait(&format!("{} === 'streaming'", state_of("mumbai")));
    assert_eq!(browser.evaluate("location.href.includes('let-me-in')"), false);
}

/// Makes the page believe in a primary with a thousand sites, of which each second every one has moved.
const THOUSAND: &str = "
    const site = (number, tick) => ({
        site: `site-${String(number).padStart(4, '0')}`, cluster: 'c', version: '0.1.0', epoch: 1,
        head_seq: tick, received_seq: tick, durable_seq: tick, applied_seq: tick, complete_seq: tick,
        lag_seconds: { applied: (number * tick) % 7 / 10, complete: 1 }, lag_events: number * tick % 90,
        lag_bytes: number * tick, missing_blobs: number % 5, heartbeat_age_seconds: 0.1,
        staleness_bound_seconds: 1, transport: 'quic', rtt_seconds: 0.1, store: { bytes: 1e9, blobs: 9 },
        state: number % 97 ? 'streaming' : 'disconnected', alarm: null, via: [], eta_seconds: number % 3,
        propagation: { applied: { p50_seconds: .1, p99_seconds: number / 1000 }, complete: null },
        pulls: {}, hit_ratio: .5, latitude: number % 60, longitude: number % 180, last_error: null,
    });
    window.updates = [];
    window.fetch = async (path) => {
        if (path !== '/v1/live') return new Response('{}');
        let tick = 0;
        const stream = new ReadableStream({ async pull(to) {
            if (tick) await new Promise(resolve => setTimeout(resolve, 300));
            tick += 1;
            const node = { role: 'primary', cluster: 'cccccccc', epoch: 1, version: '0.1.0', head_seq: tick };
            const sites = Array.from({ length: 1000 }, (_, number) => site(number, tick));
            const text = `data: ${JSON.stringify({ node, sites, gone: [] })}\\n\\n`;
            window.updates.push(performance.now());
            to.enqueue(new TextEncoder().encode(text));
        } });
        return new Response(stream);
    };
    window.long = [];
    new PerformanceObserver(list => window.long.push(...list.getEntries().map(entry => [entry.startTime, entry.duration])))
        .observe({ type: 'longtask', buffered: true });
";

#[test]
fn a_thousand_sites_are_not_too_many() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::start(Options { sites: Vec::new(), ..Options::default() });
    let browser = Browser::start(1400, 900);
    browser.call("Page.addScriptToEvaluateOnNewDocument", serde_json::json!({ "source": THOUSAND }));
    browser.open(&format!("http://{}/", cluster.primary.admin()));
    browser.wait("window.updates?.length >= 12");
    assert_eq!(browser.evaluate("document.querySelector('[data-sum=sites]').textContent"), "1,000");
    assert_eq!(browser.evaluate("document.querySelector('#page').textContent"), "page 1 of 10");
    let paint = browser.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime");
    // The first builds the page; of the others none may hold up the main thread for 50 ms.
    let long = browser
        .evaluate("window.long.filter(([at]) => at > window.updates[1]).map(([, took]) => took).join(' ')");
    eprintln!("1,000 sites: first paint after {paint} ms; tasks over 50 ms for 10 updates: [{long}]");
    browser.picture("thousand");
    assert!(paint.as_f64().unwrap() < 1000.0, "{paint}");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
