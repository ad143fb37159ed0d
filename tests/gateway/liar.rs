//! A server that answers as a test says, for what no real registry does.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    /// With its query.
    pub path: String,
    pub authorization: Option<String>,
    /// What GitLab's API is shown instead.
    pub private_token: Option<String>,
}

/// What is answered.
pub enum Reply {
    /// A status, headers and a body of the length it says.
    Whole(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// These bytes, and then the connection closes.
    Raw(Vec<u8>),
    /// These bytes, one after another with this pause, for ever.
    Trickle(Vec<u8>, Duration),
    /// Nothing.
    Silence,
}

impl Reply {
    pub fn ok(headers: &[(&'static str, String)], body: &[u8]) -> Self {
        Self::Whole(200, headers.to_vec(), body.to_vec())
    }

    /// A registry's own "there is no such thing".
    pub fn unknown(code: &str) -> Self {
        let body = serde_json::json!({ "errors": [{ "code": code, "message": "unknown" }] });
        Self::Whole(404, vec![("Content-Type", "application/json".to_owned())], body.to_string().into_bytes())
    }
}

/// A server.
pub struct Liar {
    pub address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Liar {
    pub fn open(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, note) = (Arc::new(answer), Arc::clone(&asked));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, note) = (Arc::clone(&answer), Arc::clone(&note));
                thread::spawn(move || serve(&stream, &*answer, &note));
            }
        });
        Self { address, asked }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All that was asked.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(stream: &TcpStream, answer: &dyn Fn(&Asked) -> Reply, note: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(asked) = receive(&mut reader) {
        note.lock().unwrap().push(asked.clone());
        let sent = match answer(&asked) {
            Reply::Whole(status, headers, body) => {
                let mut text = format!("HTTP/1.1 {status} x\r\n");
                for (name, value) in headers {
                    text += &format!("{name}: {value}\r\n");
                }
                text += &format!("Content-Length: {}\r\n\r\n", body.len());
                let body = if asked.method == "HEAD" { &[][..] } else { &body };
                writer.write_all(&[text.as_bytes(), body].concat())
            }
            Reply::Raw(bytes) => {
                let _ = writer.write_all(&bytes);
                return;
            }
            Reply::Trickle(bytes, pause) => {
                for byte in bytes.iter().chain(std::iter::repeat(&b' ')) {
                    if writer.write_all(&[*byte]).is_err() {
                        return;
                    }
                    thread::park_timeout(pause);
                }
                return;
            }
            Reply::Silence => {
                // Until the other end has enough of it.
                let _ = reader.read(&mut [0]);
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

fn receive(reader: &mut BufReader<&TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let mut words = line.split(' ').map(str::to_owned);
    let mut asked =
        Asked { method: words.next()?, path: words.next()?, authorization: None, private_token: None };
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => asked.authorization = Some(value.trim().to_owned()),
            "private-token" => asked.private_token = Some(value.trim().to_owned()),
            "content-length" => length = value.trim().parse().ok()?,
            _ => {}
        }
    }
    reader.read_exact(&mut vec![0; length]).ok()?;
    Some(asked)
}
