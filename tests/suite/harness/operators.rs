//! An operator who uses the operators' listener with curl.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use super::site::Running;
use super::tool::run;

/// The listener's URL, the token and curl's arguments.
#[derive(Clone)]
pub struct Operators {
    pub base: String,
    token: Option<String>,
    arguments: Vec<String>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Operators {
    /// The operator of `server`, whose log names the URL and the token file.
    pub fn of(server: &Running) -> Self {
        let line = server.says("status page at ");
        let url = line.split("status page at ").nth(1).unwrap().split([' ', '"']).next().unwrap();
        let (base, arguments) = match url.strip_prefix("unix:") {
            Some(path) => ("http://localhost", vec!["--unix-socket".to_owned(), path.to_owned()]),
            None => (url.trim_end_matches('/'), Vec::new()),
        };
        let file = line.split_once("(token: ").map(|(_, rest)| rest.split_once(')').unwrap().0);
        let token = file.map(|file| std::fs::read_to_string(file).unwrap().trim().to_owned());
        Self { base: base.to_owned(), token, arguments }
    }

    /// The same with further arguments of curl.
    #[must_use]
    pub fn with(&self, arguments: &[&str]) -> Self {
        let mut with = self.clone();
        with.arguments.extend(arguments.iter().map(|it| (*it).to_owned()));
        with
    }

    /// The same with this token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// The same without a token.
    #[must_use]
    pub fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The curl command for `path`, which prints the headers too.
    pub fn curl(&self, path: &str) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--include", "--max-time", "20", "--path-as-is"]);
        let authorization = self.token.iter().flat_map(|it| ["-H".to_owned(), format!("Authorization: Bearer {it}")]);
        curl.args(authorization).args(&self.arguments).arg(format!("{}{path}", self.base));
        curl
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        let ended = run(&mut self.curl(path));
        assert_eq!(ended.code, 0, "{path}: {ended:?}");
        Answer::parse(&ended.stdout)
    }

    #[track_caller]
    pub fn post(&self, path: &str, json: &Value) -> Answer {
        self.with(&["-H", "Content-Type: application/json", "--data", &json.to_string()]).get(path)
    }

    /// Gets `path`, which must be JSON with status 200.
    #[track_caller]
    pub fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Self { status, headers, body: body.to_owned() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
