//! The files of a release, made by `.build/packages` of the binary under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use super::tool::{Ended, run};
use super::{is_here, namespace, not_run};

const MANIFEST: &str = env!("CARGO_MANIFEST_DIR");

/// A release.
pub struct Release {
    /// The folder with its files.
    pub folder: PathBuf,
    pub package: PathBuf,
    pub archive: PathBuf,
}

impl Release {
    /// The release, made once for all tests; `None`, after NOT RUN, if a program is missing.
    pub fn of(test: &str) -> Option<Self> {
        // A test that runs itself again in a namespace uses the files that were made outside.
        static MADE: LazyLock<()> = LazyLock::new(|| {
            strip_debug_information();
            let made = Release::make(&folder(), "umask 022");
            assert_eq!(made.code, 0, "{made:?}");
        });
        if !["dpkg", "dpkg-shlibdeps", "readelf"].into_iter().all(|program| is_here(test, program)) {
            return None;
        }
        let cargo_deb = tools().join("cargo-deb");
        if !cargo_deb.exists() && Command::new("cargo-deb").arg("--version").output().is_err() {
            not_run(test, "cargo-deb is not installed (tests/run builds it)");
            return None;
        }
        if !namespace::is_any() {
            LazyLock::force(&MADE);
        }
        Some(Self::in_folder(&folder()))
    }

    /// Makes a release in `folder`, with a line of shell before.
    pub fn make(folder: &Path, before: &str) -> Ended {
        let _ = fs::remove_dir_all(folder);
        let script = format!("{before}; exec .build/packages --fast --program \"$1\" --output \"$2\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(program()).arg(folder).current_dir(MANIFEST);
        run(command.env("CARGO_TARGET_DIR", tools().ancestors().nth(2).unwrap()))
    }

    pub fn in_folder(folder: &Path) -> Self {
        let with_end = |end: &str| {
            let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            let found: Vec<PathBuf> = files.filter(|path| path.to_str().unwrap().ends_with(end)).collect();
            assert_eq!(found.len(), 1, "{found:?}");
            found.into_iter().next().unwrap()
        };
        Self { folder: folder.to_owned(), package: with_end(".deb"), archive: with_end(".tar.gz") }
    }

    pub fn files(&self) -> [PathBuf; 2] {
        [self.package.clone(), self.archive.clone()]
    }

    /// The name of the archive and of the folder in it.
    pub fn name(&self) -> String {
        self.archive.file_name().unwrap().to_str().unwrap().strip_suffix(".tar.gz").unwrap().to_owned()
    }

    /// Unpacks the archive into `folder`. Returns its own folder in there.
    pub fn unpack(&self, folder: &Path) -> PathBuf {
        let unpacked = run(Command::new("tar").arg("-xzf").arg(&self.archive).arg("-C").arg(folder));
        assert_eq!(unpacked.code, 0, "{unpacked:?}");
        folder.join(self.name())
    }
}

/// Beside the binary, so that two builds do not share it.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_provost")).with_file_name("release-of-tests")
}

/// The packed binary: the one under test. Of a debug build it is a copy as the release profile makes it, without debug
/// information, which would make everything ten times as large.
fn program() -> PathBuf {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_provost"));
    if cfg!(debug_assertions) { binary.with_file_name("provost-of-tests") } else { binary }
}

fn strip_debug_information() {
    if cfg!(debug_assertions) {
        let mut strip = Command::new("strip");
        let stripped = run(strip.args(["--strip-debug", "-o"]).arg(program()).arg(env!("CARGO_BIN_EXE_provost")));
        assert_eq!(stripped.code, 0, "{stripped:?}");
    }
}

/// Where `tests/run` puts cargo-deb.
fn tools() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_provost")).ancestors().nth(2).unwrap().join("tools/bin")
}

/// The files of the libraries with which `program` is linked, with the loader.
pub fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = run(Command::new("ldd").arg(program));
    assert_eq!(listed.code, 0, "{listed:?}");
    let words = listed.stdout.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(PathBuf::from).collect()
}

/// Copies `files` into the folder `root`, under the same paths.
pub fn copy_into(root: &Path, files: &[PathBuf]) {
    let copied = run(Command::new("cp").args(["--dereference", "--parents"]).args(files).arg(root));
    assert_eq!(copied.code, 0, "{copied:?}");
}
