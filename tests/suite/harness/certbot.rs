//! The files of certbot: folders that only root may read, symlinks to numbered files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::pki::{Identity, server_certificate};
use super::site::DOMAIN;

/// `/etc/letsencrypt`, or one below another root.
pub struct Certbot(PathBuf);

impl Certbot {
    pub fn new() -> Self {
        Self::below(Path::new("/"))
    }

    pub fn below(root: &Path) -> Self {
        let folder = root.join("etc/letsencrypt");
        fs::create_dir_all(folder.join("renewal-hooks/deploy")).unwrap();
        for private in ["live", "archive"] {
            fs::create_dir(folder.join(private)).unwrap();
            fs::set_permissions(folder.join(private), Permissions::from_mode(0o700)).unwrap();
        }
        fs::write(folder.join("live/README"), "This directory contains your keys and certificates.\n").unwrap();
        Self(folder)
    }

    /// The `number`-th certificate of `lineage`: ECDSA if the lineage's name ends in `-ec`.
    pub fn renew(&self, lineage: &str, number: u32) -> Identity {
        let identity = server_certificate(DOMAIN, !lineage.ends_with("-ec"));
        let (live, archive) = (self.0.join("live").join(lineage), self.0.join("archive").join(lineage));
        for folder in [&live, &archive] {
            fs::create_dir_all(folder).unwrap();
        }
        let (chain, key) = identity.write(&archive, "new");
        for (written, name, mode) in [(chain, "fullchain", 0o644), (key, "privkey", 0o600)] {
            fs::set_permissions(&written, Permissions::from_mode(mode)).unwrap();
            fs::rename(written, archive.join(format!("{name}{number}.pem"))).unwrap();
            let link = live.join(format!("{name}.pem"));
            let _ = fs::remove_file(&link);
            symlink(format!("../../archive/{lineage}/{name}{number}.pem"), link).unwrap();
        }
        identity
    }
}
