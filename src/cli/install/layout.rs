//! What an installation consists of, and where it lies. Pure.

use std::path::Path;

use super::super::print::completions::{Shell, script};
use super::super::print::manual;
use super::super::print::systemd::{CONSTITUENCIES, Fit, STATE};

/// The user that the service runs as, and its group.
pub(super) const USER: &str = "provost";
/// What makes it, in the words of sysusers.d(5).
pub(super) const SYSUSERS: &str = "u provost - \"Polycom phone provisioning\" /var/lib/provost\n";
/// Where a package has the service.
pub(super) const PACKAGED_SERVICE: &str = "/usr/lib/systemd/system/provost.service";
/// The key by which certificates are proved in DNS.
pub(super) const TSIG_KEY: &str = "/etc/provost/tsig.key";

const EXAMPLE: &str = include_str!("provost.json");

/// Who brings the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// `provost install`: what is not a distribution's lies in /usr/local and /etc.
    Local,
    /// A package: what is a distribution's lies in /usr.
    Package,
}

/// Something that an installation has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Where, from the root.
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) owner: Owner,
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Root,
    /// root's, and the service's group may read it.
    ReadByService,
    Service,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum What {
    Folder,
    /// A unit: renewed as long as nobody has changed it.
    Unit(String),
    /// Made by provost for readers and shells: always renewed.
    Reference(String),
    /// Written once, and the operator's from then on.
    Once(Vec<u8>),
}

impl Item {
    fn new(path: impl Into<String>, mode: u32, owner: Owner, what: What) -> Self {
        Self { path: path.into(), mode, owner, what }
    }
}

impl Layout {
    /// Where the binary lies.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Local => "/usr/local/bin/provost",
            Self::Package => "/usr/bin/provost",
        }
    }

    fn units(self) -> &'static str {
        match self {
            Self::Local => "/etc/systemd/system",
            Self::Package => "/usr/lib/systemd/system",
        }
    }

    /// The units, which fit `fit`.
    pub(super) fn unit_files(self, fit: &Fit) -> Vec<Item> {
        let unit = |name: &str, text: String| {
            Item::new(format!("{}/{name}", self.units()), 0o644, Owner::Root, What::Unit(text))
        };
        vec![unit("provost.service", fit.service()), unit("provost.socket", fit.socket())]
    }

    /// The manual, and what shells need to complete commands.
    pub(super) fn references(self) -> anyhow::Result<Vec<Item>> {
        let (share, zsh) = match self {
            Self::Local => ("/usr/local/share", "site-functions"),
            Self::Package => ("/usr/share", "vendor-completions"),
        };
        let reference = |path: String, text: String| Item::new(path, 0o644, Owner::Root, What::Reference(text));
        let pages = manual::pages()?.into_iter().map(|(name, text)| {
            let section = name.rsplit('.').next().unwrap_or("1");
            reference(format!("{share}/man/man{section}/{name}"), text)
        });
        let completions = [
            ("bash-completion/completions/provost".to_owned(), Shell::Bash),
            (format!("zsh/{zsh}/_provost"), Shell::Zsh),
            ("fish/vendor_completions.d/provost.fish".to_owned(), Shell::Fish),
        ];
        let completions = completions.map(|(path, shell)| reference(format!("{share}/{path}"), script(shell)));
        Ok(pages.chain(completions).collect())
    }
}

/// What only a package ships, besides units, references and the binary.
pub(super) fn of_package_alone() -> Vec<Item> {
    vec![
        Item::new("/usr/lib/sysusers.d/provost.conf", 0o644, Owner::Root, What::Reference(SYSUSERS.to_owned())),
        example(),
    ]
}

/// The folders. Phones' files hold passwords: the service reads them, root writes them, and nobody else looks in. They are
/// what this site serves, large and often brought by git or rsync, so they lie in /srv and not beside the configuration.
pub(super) fn folders() -> Vec<Item> {
    let folder = |path: &str, mode: u32, owner: Owner| Item::new(path, mode, owner, What::Folder);
    let above = Path::new(CONSTITUENCIES).parent().unwrap_or(Path::new("/")).to_string_lossy();
    vec![
        folder("/etc/provost", 0o755, Owner::Root),
        folder(&above, 0o750, Owner::ReadByService),
        // What is put into it has the group of the folder, so that the service may read it.
        folder(CONSTITUENCIES, 0o2750, Owner::ReadByService),
        folder(STATE, 0o700, Owner::Service),
    ]
}

/// The configuration, to be filled in.
pub(super) fn example() -> Item {
    let what = What::Once(EXAMPLE.as_bytes().to_vec());
    Item::new(super::super::print::systemd::CONFIG, 0o644, Owner::Root, what)
}

/// The TSIG key whose file is `text`.
pub(super) fn tsig_key(text: Vec<u8>) -> Item {
    Item::new(TSIG_KEY, 0o640, Owner::ReadByService, What::Once(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn help_and_manual_name_what_is_installed() {
        let (_, page) = manual::pages().unwrap().into_iter().find(|(name, _)| name == "provost.1").unwrap();
        let folders = folders();
        let service: Vec<&str> =
            folders.iter().map(|item| item.path.as_str()).filter(|path| path.contains("/provost/constit")).collect();
        assert_eq!(service.len(), 1);
        let example = example();
        let named = service.into_iter().chain([STATE, &example.path]);
        for path in named {
            assert!(manual::closing().contains(&format!("\n  {path}\n")), "{path}: {}", manual::closing());
            assert!(page.contains(&format!("\n\\fB{path}\\fR\n")), "{path}: {page}");
        }
    }

    #[test]
    fn the_example_is_good_once_the_terms_are_agreed_to() {
        let file = Path::new(super::super::super::print::systemd::CONFIG);
        let error = Config::parse(file, EXAMPLE).unwrap_err().to_string();
        assert!(error.contains("terms_of_service_agreed"), "{error}");
        let agreed = EXAMPLE.replace("false", "true");
        let config = Config::parse(file, &agreed).unwrap();
        assert_eq!((config.constituencies.to_str(), config.state.to_str()), (Some(CONSTITUENCIES), Some(STATE)));
    }
}
