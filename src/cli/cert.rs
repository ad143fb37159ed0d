//! `outport cert`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use outport_proto::SiteName;

use super::say;
use crate::{
    auth::authority::{Authority, NodeIdentity},
    clock::{Clock as _, SystemClock},
};

const AUTHORITY: &str = "authority";
/// The name that stands for the primary instead of a site.
const PRIMARY: &str = "primary";

/// Make the cluster authority and the certificates of its nodes.
#[derive(Debug, Subcommand)]
pub(super) enum Cert {
    /// Make the authority of a new cluster: authority.crt and authority.key
    Init {
        /// Where to write it
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// What to call the cluster in the certificate
        #[arg(long, default_value = "cluster")]
        cluster: String,
    },
    /// Issue a node's certificate for replication: NAME.crt and NAME.key
    Issue {
        /// `primary`, or the name of a site; with --https, any name for the two files
        name: SiteName,
        /// Where the authority is, and where to write
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// Issue an HTTPS server certificate for these host names and addresses instead
        #[arg(long, value_delimiter = ',', value_name = "HOST")]
        https: Vec<String>,
        /// Replace files that exist
        #[arg(long)]
        force: bool,
    },
}

impl Cert {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Init { dir, cluster } => init(&dir, &cluster),
            Self::Issue { name, dir, https, force } => issue(&dir, &name, &https, force),
        }
    }
}

fn init(dir: &Path, cluster: &str) -> anyhow::Result<()> {
    let (certificate, key) = files(dir, AUTHORITY);
    // Another authority would cut every node off that the first one has certified.
    refuse_existing(&certificate)?;
    refuse_existing(&key)?;
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    Authority::create(cluster, SystemClock.now())?.save(&certificate, &key)?;
    say(format_args!(
        "{}\n{} (keep it safe: whoever has it can join the cluster)",
        certificate.display(),
        key.display()
    ));
    Ok(())
}

fn issue(dir: &Path, name: &SiteName, https: &[String], force: bool) -> anyhow::Result<()> {
    let (certificate, key) = files(dir, AUTHORITY);
    let authority =
        Authority::load(&certificate, &key).context("load the authority (see `outport cert init`)")?;
    let now = SystemClock.now();
    let identity = match name.as_str() {
        AUTHORITY => bail!("{AUTHORITY} is the authority's own name"),
        _ if !https.is_empty() => authority.issue_server(https, now)?,
        PRIMARY => authority.issue_node(&NodeIdentity::Primary, now)?,
        _ => authority.issue_node(&NodeIdentity::Site(name.clone()), now)?,
    };
    let (certificate, key) = files(dir, name.as_str());
    if !force {
        refuse_existing(&certificate)?;
        refuse_existing(&key)?;
    }
    identity.save(&certificate, &key)?;
    say(format_args!("{}\n{}", certificate.display(), key.display()));
    Ok(())
}

fn files(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")))
}

fn refuse_existing(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        bail!("{} exists already", path.display());
    }
    Ok(())
}
