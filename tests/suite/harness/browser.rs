//! A real browser, Chromium, driven by `WebDriver`.
//!
//! Only one runs at a time, because a browser uses the whole machine. Its profile is temporary, and its own background
//! requests are disabled.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::bind::program;
use super::site::Lines;
use super::{Stopwatch, eventually, not_run};

/// The key of an element's identifier in `WebDriver` answers.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// The timeout of a command, long enough for a page on a loaded machine.
const COMMAND: Duration = Duration::from_secs(60);
/// Switches that disable what no test needs.
const SWITCHES: [&str; 13] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--lang=en-GB",
    "--force-prefers-reduced-motion",
    "--force-color-profile=srgb",
];

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A browser with one page. Dropped, it is killed with all its child processes.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    profile: tempfile::TempDir,
    runtime: Runtime,
    _turn: MutexGuard<'static, ()>,
}

/// A size and kind of screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Viewport {
    pub width: u32,
    pub height: u32,
    pub is_dark: bool,
    /// Whether it is a telephone: touch input and two device pixels per CSS pixel.
    pub is_telephone: bool,
}

impl Viewport {
    pub const DESK: Self = Self { width: 1280, height: 900, is_dark: false, is_telephone: false };
    pub const TELEPHONE: Self = Self { width: 390, height: 844, is_dark: false, is_telephone: true };

    pub fn dark(self) -> Self {
        Self { is_dark: true, ..self }
    }
}

impl Browser {
    /// Starts a browser; where that is impossible, `test` is reported as NOT RUN.
    pub fn start(test: &str) -> Option<Self> {
        if program("chromium").is_none() || program("chromedriver").is_none() {
            not_run(test, "no chromium and chromedriver (Debian: chromium, chromium-driver)");
            return None;
        }
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").env("PROVOST_TEST_BROWSER", profile.path()).env("TZ", "UTC").process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().unwrap();
        let said = Lines::default();
        said.follow(driver.stdout.take().unwrap());
        let port = eventually("chromedriver to listen", || {
            let said = said.all();
            let port = |line: &String| line.split_once("successfully on port ")?.1.trim_end_matches('.').parse().ok();
            said.iter().find_map(port)
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut browser = Self { driver, port, session: String::new(), profile, runtime, _turn: turn };
        browser.begin();
        Some(browser)
    }

    fn begin(&mut self) {
        let profile = format!("--user-data-dir={}", self.profile.path().display());
        let switches: Vec<&str> = SWITCHES.into_iter().chain([profile.as_str()]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": switches },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        } } });
        let begun = Self::retry(|| self.ask(Method::POST, "/session", &wanted));
        self.session = format!("/session/{}", begun["sessionId"].as_str().unwrap());
        // The browser starts with a page of its own.
        self.open("about:blank");
        self.console_errors();
        self.requests();
    }

    /// Opens `url` and waits until it is loaded.
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// The URL of the page.
    pub fn url(&self) -> String {
        self.command(Method::GET, "/url", &Value::Null).unwrap().as_str().unwrap().to_owned()
    }

    /// What `script`, the body of a function, returns.
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The visible text of each element that matches `selector`.
    #[track_caller]
    pub fn texts(&self, selector: &str) -> Vec<String> {
        let text = |element: &String| self.command(Method::GET, &format!("/element/{element}/text"), &Value::Null);
        // If an element is replaced meanwhile, the texts read before it may be from the old page.
        let texts = || self.elements(selector).iter().map(text).collect::<Result<Vec<Value>, String>>();
        Self::retry(texts).iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    }

    /// The text of the only element that matches `selector`.
    #[track_caller]
    pub fn text(&self, selector: &str) -> String {
        Self::retry(|| match <[String; 1]>::try_from(self.texts(selector)) {
            Ok([text]) => Ok(text),
            Err(texts) => Err(format!("{selector}: {texts:?}")),
        })
    }

    /// Clicks the first element that matches `selector`, which must be visible and not covered.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        self.act_on(selector, "click", &json!({}));
    }

    /// Types `text` into the first field that matches `selector`, after its content.
    #[track_caller]
    pub fn type_into(&self, selector: &str, text: &str) {
        self.act_on(selector, "value", &json!({ "text": text }));
    }

    #[track_caller]
    fn act_on(&self, selector: &str, act: &str, how: &Value) {
        Self::retry(|| {
            let element = self.elements(selector).into_iter().next();
            let element = element.ok_or_else(|| format!("nothing on {} is {selector}", self.url()))?;
            self.command(Method::POST, &format!("/element/{element}/{act}"), how)
        });
    }

    #[track_caller]
    fn elements(&self, selector: &str) -> Vec<String> {
        let wanted = json!({ "using": "css selector", "value": selector });
        let found = Self::retry(|| self.command(Method::POST, "/elements", &wanted));
        found.as_array().unwrap().iter().map(|it| it[ELEMENT].as_str().unwrap().to_owned()).collect()
    }

    /// Retries `attempt` until it succeeds, because a page may still load or be redrawn.
    #[track_caller]
    fn retry<T>(mut attempt: impl FnMut() -> Result<T, String>) -> T {
        let watch = Stopwatch::start();
        loop {
            match attempt() {
                Ok(done) => return done,
                Err(error) => assert!(!watch.is_over(), "{error}"),
            }
        }
    }

    /// Changes the viewport.
    pub fn set_viewport(&self, viewport: Viewport) {
        let scale = if viewport.is_telephone { 2 } else { 1 };
        let metrics = json!({
            "width": viewport.width, "height": viewport.height, "deviceScaleFactor": scale, "mobile": viewport.is_telephone,
        });
        self.cdp("Emulation.setDeviceMetricsOverride", &metrics);
        let scheme = if viewport.is_dark { "dark" } else { "light" };
        self.cdp(
            "Emulation.setEmulatedMedia",
            &json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] }),
        );
    }

    /// Disables scripts on all later pages.
    pub fn forbid_scripts(&self) {
        self.cdp("Emulation.setScriptExecutionDisabled", &json!({ "value": true }));
    }

    /// A PNG of the page, or of its first `height` points.
    pub fn picture(&self, height: Option<u32>) -> Vec<u8> {
        // A page without layout has no size yet.
        let picture = Self::retry(|| {
            let size = self.try_cdp("Page.getLayoutMetrics", &json!({}))?["cssContentSize"].clone();
            let height = height.map_or_else(|| size["height"].clone(), Value::from);
            let clip = json!({ "x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1 });
            let taken = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
            self.try_cdp("Page.captureScreenshot", &taken)
        });
        BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()
    }

    /// Errors on the browser's console since the last call: of scripts, and files refused or missing.
    pub fn console_errors(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({ "type": "browser" }));
        log.as_array().unwrap().iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    }

    /// The URLs that pages requested since the last call.
    pub fn requests(&self) -> BTreeSet<String> {
        let log = self.post("/se/log", &json!({ "type": "performance" }));
        let url = |line: &Value| {
            let event: Value = serde_json::from_str(line["message"].as_str()?).ok()?;
            let event = &event["message"];
            let is_request = event["method"] == "Network.requestWillBeSent";
            let url = event["params"]["request"]["url"].as_str()?;
            let is_own = ["chrome", "data:", "about:", "blob:"].iter().any(|scheme| url.starts_with(scheme));
            (is_request && !is_own).then(|| url.to_owned())
        };
        log.as_array().unwrap().iter().filter_map(url).collect()
    }

    /// Runs a command of the `DevTools` protocol.
    pub fn cdp(&self, command: &str, parameters: &Value) -> Value {
        self.try_cdp(command, parameters).unwrap_or_else(|error| panic!("{command} {parameters}: {error}"))
    }

    fn try_cdp(&self, command: &str, parameters: &Value) -> Result<Value, String> {
        self.command(Method::POST, "/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.command(Method::POST, path, body).unwrap_or_else(|error| panic!("{path} {body}: {error}"))
    }

    fn command(&self, method: Method, path: &str, body: &Value) -> Result<Value, String> {
        self.ask(method, &format!("{}{path}", self.session), body)
    }

    fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Value, String> {
        let content = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", format!("127.0.0.1:{}", self.port))
            .header("content-type", "application/json; charset=utf-8")
            .body(Full::new(Bytes::from(content)))
            .unwrap();
        let answer = async { tokio::time::timeout(COMMAND, exchange(self.port, request)).await };
        let answer = self.runtime.block_on(answer).map_err(|_| format!("no answer within {COMMAND:?}"))?;
        let mut answer: Value = serde_json::from_slice(&answer.map_err(|error| error.to_string())?).unwrap();
        match answer["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", answer["value"]["message"].as_str().unwrap_or_default())),
            None => Ok(answer["value"].take()),
        }
    }
}

async fn exchange(port: u16, request: Request<Full<Bytes>>) -> Result<Bytes, Box<dyn std::error::Error>> {
    let stream = tokio::net::TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let asked = async {
        let answer = sender.send_request(request).await?;
        Ok::<Bytes, Box<dyn std::error::Error>>(answer.into_body().collect().await?.to_bytes())
    };
    tokio::select! {
        answer = asked => answer,
        // The connection is driven as long as the exchange lasts.
        Err(error) = connection => Err(error.into()),
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Closing the session ends the browser; remaining processes are killed.
        let _ = self.command(Method::DELETE, "", &Value::Null);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let profile = self.profile.path().to_owned();
        let gone = || {
            let left = processes_of(&profile);
            for pid in &left {
                let _ = rustix::process::kill_process(*pid, rustix::process::Signal::KILL);
            }
            left.is_empty().then_some(())
        };
        if std::thread::panicking() {
            gone();
        } else {
            eventually("the browser's processes to be gone", gone);
        }
    }
}

/// The processes that name the profile in their arguments or environment.
fn processes_of(profile: &Path) -> Vec<rustix::process::Pid> {
    let profile = profile.as_os_str().as_encoded_bytes();
    let mentions = |pid: i32, file: &str| {
        let content = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        content.windows(profile.len()).any(|window| window == profile)
    };
    let own = i32::try_from(std::process::id()).unwrap();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let its = pids.filter(|pid| *pid != own && (mentions(*pid, "cmdline") || mentions(*pid, "environ")));
    its.filter_map(rustix::process::Pid::from_raw).collect()
}
