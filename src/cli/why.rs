//! `outport why`.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use outport_proto::SiteName;

use super::{admin::AdminAddress, bytes, say};
use crate::registry::whereabouts::{
    ImageRef,
    answer::{Shown, Why as Answer},
    why::Cause,
};

/// A site may ask its primary before it answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Say why a site shows an image, or does not.
#[derive(Debug, Args)]
#[command(after_help = "\
Codes: visible, behind, waiting_for_blobs, not_kept, cut_off, deleted, never_seen, denied.
The site itself knows most; the primary knows of a site what it acknowledged last, and says what it cannot know.")]
pub(super) struct Why {
    /// `repository:tag` or `repository@digest`, without a host
    #[arg(value_name = "REF")]
    image: ImageRef,
    /// The site; may be left out when the site itself is asked
    #[arg(long, value_name = "SITE")]
    site: Option<SiteName>,
    /// Somebody who cannot pull it, by the name they log in with (at the primary)
    #[arg(long, value_name = "NAME", conflicts_with = "anonymous")]
    user: Option<String>,
    /// The same for somebody without login
    #[arg(long)]
    anonymous: bool,
    #[command(flatten)]
    admin: AdminAddress,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Why {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("ref", &self.image.to_string());
        if let Some(site) = &self.site {
            query.append_pair("site", site.as_str());
        }
        if let Some(user) = &self.user {
            query.append_pair("user", user);
        }
        if self.anonymous {
            query.append_pair("anonymous", "true");
        }
        let target = format!("/v1/why?{}", query.finish());
        let text = self.admin.page(&target, ANSWER_TIMEOUT).await?;
        if self.json {
            say(text);
        } else {
            say(render(&serde_json::from_str(&text).context("read answer")?)?);
        }
        Ok(())
    }
}

fn render(why: &Answer) -> anyhow::Result<String> {
    let code = serde_json::to_value(&why.cause)?["code"].as_str().unwrap_or_default().to_owned();
    let mut lines = vec![
        format!("{code}: {}", why.sentence),
        format!("  primary  {}", shown(&why.primary)),
        format!("  {}  {}, applied {}, complete {}", why.site, shown(&why.shown), why.applied, why.complete),
    ];
    if let Cause::WaitingForBlobs { digests, .. } | Cause::NotKept { digests, .. } = &why.cause {
        lines.extend(digests.iter().map(|digest| format!("  missing  {digest}")));
    }
    if let Cause::WaitingForBlobs { bytes: Some(missing), .. } | Cause::NotKept { bytes: missing, .. } =
        &why.cause
    {
        lines.push(format!("  in all  {}", bytes(*missing)));
    }
    Ok(lines.join("\n"))
}

fn shown(shown: &Shown) -> String {
    let parts = [Some(&shown.state), shown.digest.as_ref(), shown.offset.as_ref()];
    parts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use outport_proto::Digest;

    use super::*;

    #[test]
    fn a_cause_and_what_it_was_found_by() {
        let digest = Digest::sha256(b"x");
        let why = Answer {
            reference: "app:1".to_owned(),
            site: "mumbai".to_owned(),
            asked: "secondary".to_owned(),
            cause: Cause::WaitingForBlobs {
                blobs: 1,
                bytes: Some(2048),
                digests: vec![digest],
                eta_seconds: None,
            },
            sentence: "It copies.".to_owned(),
            primary: Shown {
                state: "shown".to_owned(),
                digest: Some("sha256:00".to_owned()),
                offset: Some("1.4".to_owned()),
            },
            shown: Shown { state: "not-known".to_owned(), ..Shown::default() },
            applied: "1.4".to_owned(),
            complete: "1.3".to_owned(),
            not_known_here: Vec::new(),
        };
        assert_eq!(
            render(&why).unwrap(),
            format!(
                "waiting_for_blobs: It copies.\n  primary  shown sha256:00 1.4\n  \
                 mumbai  not-known, applied 1.4, complete 1.3\n  missing  {digest}\n  in all  2.0 KiB"
            )
        );
    }
}
