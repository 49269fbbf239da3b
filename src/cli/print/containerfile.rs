//! A container file: an image with this version of the program, laid out as the service is.

use super::systemd::{CONFIG, CONSTITUENCIES, STATE};
use crate::admin::Endpoint;

const TEMPLATE: &str = include_str!("Containerfile");

/// The program's path in the image.
const PROGRAM: &str = "/usr/local/bin/provost";
/// The ID of the image's user and group. The image has no name for it: Debian's own IDs end below 1000, and those of a
/// machine's users rarely reach 10000.
const USER: &str = "10001";

/// The container file.
pub(super) fn containerfile() -> String {
    TEMPLATE
        .replace("{version}", env!("PROVOST_VERSION"))
        .replace("{release}", env!("CARGO_PKG_VERSION"))
        .replace("{program}", PROGRAM)
        .replace("{config}", CONFIG)
        .replace("{constituencies}", CONSTITUENCIES)
        .replace("{state}", STATE)
        .replace("{user}", USER)
        .replace("{status}", &Endpoint::PORT.to_string())
}
