//! Chromium without a screen, driven by its DevTools protocol over a pair of pipes.

use std::{
    cell::RefCell,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::{path, wait_for};

const PROGRAM: &str = "chromium";

/// A browser with one page. Dropping it ends it.
pub struct Browser {
    child: Child,
    pipe: RefCell<Pipe>,
    session: String,
    _profile: tempfile::TempDir,
}

struct Pipe {
    to: File,
    from: BufReader<File>,
    sent: u64,
    /// What the page complained of.
    complaints: Vec<String>,
}

impl Browser {
    /// Starts it with a window of that size, in CSS pixels.
    pub fn start(width: u32, height: u32) -> Self {
        let profile = tempfile::Builder::new().prefix("outport-browser-").tempdir().unwrap();
        let [to, from] = ["to", "from"].map(|name| profile.path().join(name));
        for pipe in [&to, &from] {
            assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
        }
        // The pipes are to be the file descriptors 3 and 4 of the browser.
        let script = "exec \"$0\" \"$@\" 3<\"$TO\" 4>\"$FROM\"";
        let child = Command::new("sh")
            .args(["-c", script, PROGRAM, "--headless", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-pipe"])
            .args([format!("--user-data-dir={}", path(profile.path()))])
            .args([format!("--window-size={width},{height}"), "about:blank".to_owned()])
            .env("TO", &to)
            .env("FROM", &from)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(
            Command::new(PROGRAM).arg("--version").output().is_ok_and(|output| output.status.success()),
            "{PROGRAM} (Debian's package of that name) is needed"
        );
        // Opening one end waits for the other.
        let to = File::options().write(true).open(to).unwrap();
        let from = BufReader::new(File::open(from).unwrap());
        let pipe = RefCell::new(Pipe { to, from, sent: 0, complaints: Vec::new() });
        let mut this = Self { child, pipe, session: String::new(), _profile: profile };
        let target = this.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = this.call("Target.attachToTarget", attach);
        this.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            this.call(domain, json!({}));
        }
        this
    }

    /// Calls a method of the protocol.
    pub fn call(&self, method: &str, parameters: Value) -> Value {
        let mut pipe = self.pipe.borrow_mut();
        pipe.sent += 1;
        let id = pipe.sent;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        pipe.to.write_all(&bytes).unwrap();
        loop {
            let mut bytes = Vec::new();
            assert!(pipe.from.read_until(0, &mut bytes).unwrap() > 0, "the browser ended");
            bytes.pop();
            let message: Value = serde_json::from_slice(&bytes).unwrap();
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            pipe.hear(&message);
        }
    }

    /// Opens an address.
    pub fn open(&self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
    }

    /// What a piece of JavaScript comes to, once it is settled.
    pub fn evaluate(&self, script: &str) -> Value {
        let parameters = json!({ "expression": script, "awaitPromise": true, "returnByValue": true });
        let result = self.call("Runtime.evaluate", parameters);
        assert!(result["exceptionDetails"].is_null(), "{script}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until a piece of JavaScript comes to something true, and returns that.
    pub fn wait(&self, script: &str) -> Value {
        wait_for(script, || {
            let value = self.evaluate(script);
            (!matches!(&value, Value::Null | Value::Bool(false)) && value != json!("")).then_some(value)
        })
    }

    /// What the page complained of since the last time.
    pub fn complaints(&self) -> Vec<String> {
        std::mem::take(&mut self.pipe.borrow_mut().complaints)
    }

    /// Keeps a picture of the page.
    pub fn picture(&self, name: &str) -> PathBuf {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard");
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join(format!("{name}.png"));
        std::fs::write(&file, STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()).unwrap();
        file
    }
}

impl Pipe {
    fn hear(&mut self, message: &Value) {
        let parameters = &message["params"];
        match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(parameters.to_string()),
            Some("Runtime.consoleAPICalled") if parameters["type"] == "error" => {
                self.complaints.push(parameters["args"].to_string());
            }
            Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => {
                self.complaints.push(parameters["entry"].to_string());
            }
            _ => {}
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
