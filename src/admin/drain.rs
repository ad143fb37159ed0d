//! `/v1/drain`: whether a primary takes pushes (GET), takes none (POST), takes them again (DELETE).

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;

use super::{Admin, error, json};
use crate::blocking;

impl Admin {
    /// 200 with whether pushes are refused, how many are under way, and the newest event; 409 at a secondary.
    pub(super) async fn drained(&self, method: &Method) -> Response<Full<Bytes>> {
        let Some(drain) = self.drain.clone() else {
            return error(StatusCode::CONFLICT, "only a primary takes pushes, and can be drained");
        };
        let is_change = matches!(*method, Method::POST | Method::DELETE);
        if is_change {
            let (of, drains) = (drain.clone(), *method == Method::POST);
            match blocking::spawn(move || of.set(drains)).await {
                Ok(Ok(())) => tracing::warn!(drains, "told whether pushes are to be taken"),
                Ok(Err(reason)) => return error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string()),
                Err(reason) => return error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string()),
            }
        }
        // The head is read behind the count: what was under way is in it once there is nothing.
        let (drains, under_way) = drain.state();
        let head = self.log.head();
        json(
            StatusCode::OK,
            &serde_json::json!({
                "draining": drains, "under_way": under_way, "head_epoch": head.epoch, "head_seq": head.seq,
            }),
        )
    }
}
