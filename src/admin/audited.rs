//! What of an administrator's request the audit log is told.

use std::net::IpAddr;

use http::{Method, Request, StatusCode};

use super::Admin;
use crate::telemetry::audit::{Kind, Record, user_agent};

impl Admin {
    /// The record of a request that may change something, but for how it ended; `None` for one that only
    /// looks, and while nothing is kept.
    pub fn record<B>(&self, request: &Request<B>, client: IpAddr) -> Option<Box<Record>> {
        if !self.audit.is_kept() || matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        let mut record = self.audit.record(Kind::Admin, Some(client))?;
        record.detail = request.uri().path_and_query().map(ToString::to_string);
        record.user_agent = user_agent(request.headers());
        Some(record)
    }

    /// Tells how it ended.
    pub fn audit(&self, record: Option<Box<Record>>, status: StatusCode) {
        let Some(record) = record else { return };
        let is_denied = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let kind = if is_denied { Kind::Denial } else { Kind::Admin };
        self.audit.tell(&Record { kind, status: Some(status.as_u16()), ..*record });
    }
}
