//! What of an administrator's request the audit log is told.

use std::{net::IpAddr, time::SystemTime};

use http::{Method, Request, StatusCode};

use super::Admin;
use crate::telemetry::audit::{Kind, Record};

/// A request that may change something.
#[derive(Debug)]
pub struct Act {
    time: SystemTime,
    target: Option<String>,
    client: IpAddr,
    user_agent: Option<Box<[u8]>>,
}

impl Admin {
    /// What is to be told of a request once it has ended; `None` of one that only looks, and while nothing is kept.
    pub fn act<B>(&self, request: &Request<B>, client: IpAddr) -> Option<Act> {
        if !self.audit.is_kept() || matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        Some(Act {
            time: SystemTime::now(),
            target: request.uri().path_and_query().map(ToString::to_string),
            client,
            user_agent: Record::agent_in(request.headers()).map(Into::into),
        })
    }

    /// Tells how it ended.
    pub fn audit(&self, act: Option<Act>, status: StatusCode) {
        let Some(act) = act else { return };
        let is_denied = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let kind = if is_denied { Kind::Denial } else { Kind::Admin };
        self.audit.tell(&Record {
            status: Some(status.as_u16()),
            detail: act.target.as_deref(),
            client: Some(act.client),
            user_agent: act.user_agent.as_deref(),
            ..Record::at(act.time, kind)
        });
    }
}
