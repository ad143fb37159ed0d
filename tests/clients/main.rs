//! Real clients against a real cluster: a primary and the sites frankfurt and mumbai, with HTTPS on
//! names of different domains, as in production.
//!
//! A test says so and passes where its client is not installed or where it may not make a mount
//! namespace; `OUTPORT_TEST_CLIENTS=required` makes that a failure.

#![cfg(test)]
#![expect(
    unreachable_pub,
    reason = "a test binary is reached by nobody: `pub` tells its modules apart well enough"
)]

mod bed;
mod buildah;
mod callers;
mod content;
mod ctr;
mod cycles;
mod docker;
mod image;
mod kubelet;
mod large;
mod mirrors;
mod outage;
mod podman;
mod raw;
mod sandbox;
mod scenario;
mod skopeo;
#[path = "../support/mod.rs"]
mod support;
mod wire;

#[test]
fn docker_pushes_here_and_pulls_there() {
    scenario::run(&docker::TOOL);
}

#[test]
fn docker_pushes_through_a_gateway_and_pulls_there() {
    scenario::run_with(&docker::TOOL, gateway());
}

#[test]
fn podman_pushes_through_a_gateway_and_pulls_there() {
    scenario::run_with(&podman::TOOL, gateway());
}

#[test]
fn skopeo_pushes_through_a_gateway_and_pulls_there() {
    scenario::run_with(&skopeo::TOOL, gateway());
}

#[test]
fn buildah_pushes_through_a_gateway_and_pulls_there() {
    scenario::run_with(&buildah::TOOL, gateway());
}

#[test]
fn containerd_pushes_through_a_gateway_and_pulls_there() {
    scenario::run_with(&ctr::TOOL, gateway());
}

/// A primary that stands in front of CNCF Distribution, which lets in the gateway alone.
fn gateway() -> support::Options {
    support::Options { registry: Some(support::registry::Lets::Users), ..support::Options::default() }
}

#[test]
fn podman_pushes_here_and_pulls_there() {
    scenario::run(&podman::TOOL);
}

#[test]
fn skopeo_pushes_here_and_pulls_there() {
    scenario::run(&skopeo::TOOL);
}

#[test]
fn buildah_pushes_here_and_pulls_there() {
    scenario::run(&buildah::TOOL);
}

#[test]
fn containerd_pushes_here_and_pulls_there() {
    scenario::run(&ctr::TOOL);
}

#[test]
fn cycles_of_push_wait_and_pull_with_skopeo() {
    cycles::run("skopeo", &skopeo::TOOL);
}

#[test]
fn cycles_of_push_wait_and_pull_with_podman() {
    cycles::run("podman", &podman::TOOL);
}

#[test]
fn cycles_of_push_wait_and_pull_with_buildah() {
    cycles::run("buildah", &buildah::TOOL);
}

#[test]
fn cycles_of_push_wait_and_pull_with_containerd() {
    cycles::run("containerd", &ctr::TOOL);
}

#[test]
fn cycles_of_push_wait_and_pull_with_docker() {
    cycles::run("docker", &docker::TOOL);
}
