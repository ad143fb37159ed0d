//! What of an administrator's request the audit log is told.

use std::net::IpAddr;

use http::{Method, Request, StatusCode, header};

use super::Admin;
use crate::telemetry::audit::{Kind, Record};

impl Admin {
    /// The record of a request that may change something, but for how it ended; `None` for one that only
    /// looks, and while nothing is kept.
    pub fn record<B>(&self, request: &Request<B>, client: IpAddr) -> Option<Record> {
        if !self.audit.is_kept() || matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        Some(Record {
            detail: request.uri().path_and_query().map(ToString::to_string),
            user_agent: request.headers().get(header::USER_AGENT).cloned(),
            ..self.audit.record(Kind::Admin, Some(client))?
        })
    }

    /// Tells how it ended.
    pub fn audit(&self, record: Option<Record>, status: StatusCode) {
        let Some(record) = record else { return };
        let is_denied = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let kind = if is_denied { Kind::Denial } else { Kind::Admin };
        self.audit.tell(Record { kind, status: Some(status.as_u16()), ..record });
    }
}
