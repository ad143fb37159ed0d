//! `outport wait`.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use http::StatusCode;
use outport_proto::{Digest, SiteName};

use super::{admin::AdminAddress, say};
use crate::{
    admin::TIMEOUT_MAX,
    registry::whereabouts::{ImageRef, Stage, answer::Waited},
};

/// Exit code when the time is over.
const TIMED_OUT: u8 = 3;
/// The node keeps the time; it gets this much more to say so.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// Wait until sites show an image, or hold all of it.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 reached, 1 error, 3 not reached in time.

A tag stands for the digest that the primary shows when the wait begins, or first shows afterwards;
--digest asks for a certain one. With --complete the wait ends when the site has copied every blob that
its policy keeps up to the event that put the image, so blobs of earlier pushes count too.

  docker push registry.example.com/team/app:2 && outport wait team/app:2 --all-sites --timeout 2m")]
pub(super) struct Wait {
    /// `repository:tag` or `repository@digest`, without a host
    #[arg(value_name = "REF")]
    image: ImageRef,
    /// The digest that the tag must name
    #[arg(long)]
    digest: Option<Digest>,
    /// Wait for this site alone; without it the primary waits for every site, a site for itself
    #[arg(long, value_name = "SITE", conflicts_with = "all_sites")]
    site: Option<SiteName>,
    /// Wait for every site (at the primary)
    #[arg(long)]
    all_sites: bool,
    /// Wait until the blobs are there as well
    #[arg(long)]
    complete: bool,
    /// Give up after this long: seconds, or with a unit as in 500ms, 90s, 5m; at most 10m
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    admin: AdminAddress,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Wait {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let (status, text) = self.admin.get(&self.target(), self.timeout + ANSWER_GRACE).await?;
        if !matches!(status, StatusCode::OK | StatusCode::GATEWAY_TIMEOUT) {
            bail!("ask {}: {status}: {}", self.admin.address(), text.trim());
        }
        let waited: Waited = serde_json::from_str(&text).context("read answer")?;
        if self.json {
            say(&text);
        } else {
            say(render(&waited));
        }
        Ok(if waited.reached { ExitCode::SUCCESS } else { ExitCode::from(TIMED_OUT) })
    }

    fn target(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("ref", &self.image.to_string());
        query.append_pair("timeout", &self.timeout.as_secs_f64().to_string());
        if let Some(digest) = &self.digest {
            query.append_pair("digest", &digest.to_string());
        }
        if let Some(site) = &self.site {
            query.append_pair("site", site.as_str());
        }
        for (key, is_set) in [("all_sites", self.all_sites), ("complete", self.complete)] {
            if is_set {
                query.append_pair(key, "true");
            }
        }
        format!("/v1/wait?{}", query.finish())
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        _ => return Err("a number with ms, s or m".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "a number with ms, s or m".to_owned())?;
    let duration = Duration::try_from_secs_f64(number * scale).map_err(|error| error.to_string())?;
    if duration > TIMEOUT_MAX {
        return Err(format!("at most {} minutes", TIMEOUT_MAX.as_secs() / 60));
    }
    Ok(duration)
}

fn render(waited: &Waited) -> String {
    let names = |reached: bool| {
        let sites = waited.sites.iter().filter(|site| site.reached == reached);
        sites.map(|site| site.site.as_str()).collect::<Vec<_>>().join(", ")
    };
    let stage = match waited.stage {
        Stage::Visible => "visible",
        Stage::Complete => "complete",
    };
    let Waited { reference, waited_seconds: took, .. } = waited;
    match &waited.digest {
        Some(digest) if waited.reached => {
            format!("{reference} ({digest}) is {stage} at {} after {took:.1} s", names(true))
        }
        _ if waited.offset.is_none() => {
            format!("{reference} was not seen within {took:.1} s")
        }
        _ => format!("{reference} is not {stage} at {} after {took:.1} s", names(false)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::whereabouts::answer::WaitedSite;

    #[test]
    fn durations() {
        for (text, milliseconds) in
            [("60", 60_000), ("1.5", 1500), ("500ms", 500), ("90s", 90_000), ("10m", 600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in ["", "s", "-1s", "11m", "1h", "soon", "NaN"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_line_says_who_is_late() {
        let site = |name: &str, reached| WaitedSite {
            site: name.to_owned(),
            reached,
            applied: "1.4".to_owned(),
            complete: "1.4".to_owned(),
        };
        let waited = Waited {
            reference: "app:1".to_owned(),
            digest: Some("sha256:00".to_owned()),
            offset: Some("1.5".to_owned()),
            stage: Stage::Complete,
            reached: false,
            waited_seconds: 2.0,
            sites: vec![site("frankfurt", true), site("mumbai", false)],
        };
        assert_eq!(render(&waited), "app:1 is not complete at mumbai after 2.0 s");
        let reached = Waited { reached: true, sites: vec![site("mumbai", true)], ..waited.clone() };
        assert_eq!(render(&reached), "app:1 (sha256:00) is complete at mumbai after 2.0 s");
        assert_eq!(render(&Waited { offset: None, ..waited }), "app:1 was not seen within 2.0 s");
    }
}
