//! `outport revoke`.

use std::time::Duration;

use clap::Args;
use http::Method;

use super::{admin::AdminAddress, say};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Ask the registry again about every caller, at once and at all sites.
#[derive(Debug, Args)]
#[command(after_help = "\
For a primary with auth.mode = \"delegated\": what its registry said of a caller is remembered for a short while
(auth.delegated.allow_seconds). After a user was removed or a password changed, this makes it void at once.
A site that is cut off forgets by itself within that time.")]
pub(super) struct Revoke {
    #[command(flatten)]
    admin: AdminAddress,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Revoke {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let text = self.admin.answered(Method::POST, "/v1/revoke", TIMEOUT).await?;
        say(if self.json { text } else { "the registry is asked again about every caller".to_owned() });
        Ok(())
    }
}
