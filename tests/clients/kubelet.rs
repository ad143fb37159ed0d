//! A kubelet's part in a pull: it asks containerd through the container runtime interface, with the credentials of
//! `imagePullSecrets`.

use std::{fs, path::Path};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;

use crate::{
    sandbox::Sandbox,
    support::{path, wait_for},
};

/// A containerd as a node of Kubernetes has it.
pub(crate) struct Kubelet {
    socket: String,
}

impl Kubelet {
    /// One that reads its registries from `hosts`.
    pub(crate) fn start(sandbox: &Sandbox, hosts: &Path) -> Self {
        let dir = sandbox.path("kubelet");
        fs::create_dir_all(&dir).unwrap();
        let (config, hosts, dir) = (dir.join("config.toml"), path(hosts), path(&dir));
        let socket = format!("{dir}/socket");
        let text = format!(
            "version = 2\nroot = '{dir}/root'\nstate = '{dir}/state'\n\
             disabled_plugins = ['io.containerd.internal.v1.opt']\n\
             [grpc]\naddress = '{socket}'\n\
             [plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'native'\n\
             [plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '{hosts}'\n"
        );
        fs::write(&config, text).unwrap();
        sandbox.daemon(&["containerd", "--config", path(&config)]);
        let kubelet = Self { socket };
        wait_for("containerd to answer", || kubelet.call("ListImages", Vec::new()).ok());
        kubelet
    }

    /// Pulls an image; what it is called there, or the error.
    pub(crate) fn pull(&self, image: &str, secret: Option<(&str, &str)>) -> Result<String, String> {
        let mut request = field(1, field(1, image));
        if let Some((user, password)) = secret {
            request.extend(field(2, [field(1, user), field(2, password)].concat()));
        }
        self.call("PullImage", request).map(|answer| String::from_utf8_lossy(&answer).into_owned())
    }

    /// Its digests.
    pub(crate) fn images(&self) -> String {
        String::from_utf8_lossy(&self.call("ListImages", Vec::new()).unwrap()).into_owned()
    }

    /// Calls a method of its `ImageService`, in the encoding of protocol buffers.
    fn call(&self, method: &str, message: Vec<u8>) -> Result<Bytes, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|error| error.to_string())?;
            let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
            let (mut sender, connection) = connected.await.map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            // Not compressed, and its length.
            let mut body = vec![0];
            body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            body.extend(message);
            let request = Request::post(format!("http://localhost/runtime.v1.ImageService/{method}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Full::new(Bytes::from(body)))
                .unwrap();
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let (head, body) = answer.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?;
            let ends = body.trailers().cloned().unwrap_or(head.headers);
            let said = |name: &str| ends.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
            if said("grpc-status").as_deref() != Some("0") {
                return Err(said("grpc-message").unwrap_or_default().into_owned());
            }
            Ok(body.to_bytes().slice(5..))
        })
    }
}

/// A field whose value has a length.
fn field(number: u8, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    let mut field = vec![number << 3 | 2];
    let mut length = value.len();
    while length >= 0x80 {
        field.push(length as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend(value);
    field
}
