//! From the configuration of webhooks to running ones.

use std::{sync::Arc, time::Duration};

use super::{StartError, data_dir::DataDir};
use crate::{
    config,
    primary::webhooks::{Secret, Sources, Target, WebhookOptions, Webhooks},
    shutdown::Shutdown,
    telemetry::Metrics,
};

/// Begins to tell those of `webhooks`.
///
/// # Errors
/// When what they name cannot be read or used.
pub(super) fn start(
    webhooks: &[config::Webhook],
    sources: &Sources,
    data_dir: &DataDir,
    metrics: &Metrics,
    shutdown: &Shutdown,
) -> Result<Webhooks, StartError> {
    let options = webhooks.iter().map(options).collect::<Result<_, _>>()?;
    let file = data_dir.join("webhooks.json");
    metrics
        .register(|registry| Webhooks::start(options, sources, file, registry, shutdown))
        .map_err(|error| StartError::new("start the webhooks", error))
}

fn options(webhook: &config::Webhook) -> Result<WebhookOptions, StartError> {
    let failed = |key: &str, reason: Box<dyn std::error::Error + Send + Sync>| {
        StartError::new(format!("set up the webhook {} (webhooks.{key})", webhook.name), reason)
    };
    let secret = std::fs::read_to_string(&webhook.secret_file);
    let secret = secret.map_err(|error| failed("secret_file", error.into()))?;
    let secret = Secret::new(&secret).ok_or_else(|| failed("secret_file", "it is empty".into()))?;
    let tls = super::https_client(webhook.authorities.as_deref());
    let tls = tls.map_err(|error| failed("authorities", error))?;
    let url = webhook.url.as_str().parse();
    let url = url.map_err(|error: http::uri::InvalidUri| failed("url", error.into()))?;
    Ok(WebhookOptions {
        name: webhook.name.clone(),
        target: Target { url, secret, tls: Arc::new(tls) },
        kinds: webhook.events.clone(),
        repositories: webhook.repositories().map_err(|error| failed("repositories", error.into()))?,
        sites: webhook.sites.clone(),
        behind_after: Duration::from_secs(u64::from(webhook.behind_seconds)),
    })
}
