//! A small blocking HTTP/1.1 client: what it sends and what it got is plain to see, which is what
//! a protocol test wants. TLS through rustls with one trusted authority.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustls::pki_types::pem::PemObject as _;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A response, whole.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// A header's value; names compare without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The code of the first error of an OCI error body.
    pub fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Where and how to connect.
#[derive(Clone)]
pub struct Client {
    tls: Option<Arc<rustls::ClientConfig>>,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

impl Client {
    /// Plain HTTP.
    pub fn plain() -> Self {
        Self { tls: None }
    }

    /// HTTPS that trusts one authority.
    pub fn trusting(authority: &Path) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in rustls::pki_types::CertificateDer::pem_file_iter(authority).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { tls: Some(Arc::new(config)) }
    }

    /// Opens a connection to `address` (`ip:port`).
    pub fn connect(&self, address: &str) -> io::Result<Connection> {
        let tcp = TcpStream::connect(address)?;
        tcp.set_read_timeout(Some(TIMEOUT))?;
        tcp.set_write_timeout(Some(TIMEOUT))?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some(config) => {
                let name = address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
                let name = rustls::pki_types::ServerName::try_from(name).map_err(io::Error::other)?;
                let session =
                    rustls::ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                Box::new(rustls::StreamOwned::new(session, tcp))
            }
        };
        Ok(Connection { host: address.to_owned(), stream: BufReader::new(stream) })
    }

    /// One request on a connection of its own.
    pub fn send(
        &self,
        address: &str,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        self.connect(address)
            .and_then(|mut connection| connection.send(method, target, headers, body))
            .unwrap_or_else(|error| panic!("{method} http://{address}{target}: {error}"))
    }

    /// A GET on a connection of its own.
    pub fn get(&self, address: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        self.send(address, "GET", target, headers, b"")
    }
}

/// An open connection; requests follow one another on it.
pub struct Connection {
    host: String,
    stream: BufReader<Box<dyn Stream>>,
}

impl Connection {
    /// Sends a request with a whole body and reads the whole answer.
    pub fn send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let sized = headers.iter().any(|(name, _)| {
            name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding")
        });
        if !sized && (!body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH")) {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.raw(head.as_bytes())?;
        self.raw(body)?;
        self.receive(method == "HEAD")
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    /// Reads one answer.
    pub fn receive(&mut self, head_only: bool) -> io::Result<Response> {
        let mut response = self.receive_head()?;
        if head_only || matches!(response.status, 100..=199 | 204 | 304) {
            return Ok(response);
        }
        if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            loop {
                let size = usize::from_str_radix(self.line()?.trim(), 16).map_err(io::Error::other)?;
                let mut chunk = vec![0; size];
                self.stream.read_exact(&mut chunk)?;
                response.body.extend(chunk);
                self.line()?;
                if size == 0 {
                    return Ok(response);
                }
            }
        }
        match response.header("content-length").and_then(|value| value.parse().ok()) {
            Some(length) => {
                let length: usize = length;
                response.body = vec![0; length];
                self.stream.read_exact(&mut response.body)?;
            }
            None => {
                self.stream.read_to_end(&mut response.body)?;
            }
        }
        Ok(response)
    }

    /// Reads the head of an answer; the body is left on the connection.
    pub fn receive_head(&mut self) -> io::Result<Response> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status line: {line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            match line.split_once(':') {
                Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
                None => return Ok(Response { status, headers, body: Vec::new() }),
            }
        }
    }

    /// Reads up to `buffer.len()` bytes of a body.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// A plain GET for admin pages: status and body.
pub fn get_plain(address: &str, target: &str) -> io::Result<(u16, String)> {
    let response = Client::plain().connect(address)?.send("GET", target, &[], b"")?;
    Ok((response.status, response.text()))
}

/// A token from the token endpoint of `primary`; anonymous without a user.
pub fn token(
    client: &Client,
    primary: &str,
    service: &str,
    scopes: &[&str],
    user: Option<(&str, &str)>,
) -> String {
    let scopes: String = scopes.iter().map(|scope| format!("&scope={scope}")).collect();
    let target = format!("/token?service={service}{scopes}");
    let basic = user.map(|(name, password)| {
        use base64::Engine as _;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}")))
    });
    let headers: Vec<(&str, &str)> = basic.iter().map(|value| ("Authorization", value.as_str())).collect();
    let response = client.get(primary, &target, &headers);
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["token"].as_str().expect("a token").to_owned()
}
