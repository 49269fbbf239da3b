//! The container file that provost prints. buildah, which needs no daemon, builds the image of the archive's program; the
//! image serves a phone, started with the options that the file names.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use provost::serve::Limits;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::pki::{FACTORY, SERVER_CA};
use crate::harness::release::{Release, copy_into, libraries};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::Client;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{VVX500, eventually, is_here, namespace, not_run};

/// Programs of Debian's base image that the container file or this test uses.
const PROGRAMS: [&str; 4] = ["/usr/bin/sh", "/usr/bin/bash", "/usr/bin/install", "/usr/bin/setpriv"];
/// The user of the image.
const USER: u32 = 10001;

/// Buildah with a store of its own.
struct Buildah(tempfile::TempDir);

impl Buildah {
    /// Its store has a base image, made of this machine's files under the name that the container file uses.
    fn with_base() -> Self {
        let buildah = Self(tempfile::tempdir().unwrap());
        fs::write(buildah.path("policy"), r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#).unwrap();
        fs::write(buildah.path("registries"), "unqualified-search-registries = []\n").unwrap();
        let base = buildah.path("base");
        for folder in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "proc", "dev", "tmp"] {
            fs::create_dir_all(base.join(folder)).unwrap();
        }
        for folder in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{folder}"), base.join(folder)).unwrap();
        }
        fs::write(base.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        fs::write(base.join("etc/group"), "root:x:0:\n").unwrap();
        let programs = PROGRAMS.map(PathBuf::from);
        copy_into(&base, &programs);
        // Debian's base image has provost's libraries, too.
        let provost = PathBuf::from(env!("CARGO_BIN_EXE_provost"));
        programs.iter().chain([&provost]).for_each(|program| copy_into(&base, &libraries(program)));
        let container = buildah.run(&["from", "scratch"]);
        buildah.run(&["add", "--quiet", &container, base.to_str().unwrap(), "/"]);
        let name = "docker.io/library/debian:bookworm-slim";
        let policy = buildah.path("policy");
        buildah.run(&["commit", "--quiet", "--signature-policy", policy.to_str().unwrap(), &container, name]);
        buildah
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The options for the store.
    fn store(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let mut words = vec!["--storage-driver".to_owned(), "vfs".to_owned()];
        for (option, file) in [("--root", "store"), ("--runroot", "run"), ("--registries-conf", "registries")] {
            words.extend([option.to_owned(), path(file)]);
        }
        words
    }

    /// Runs a command of buildah, which must succeed. Returns its output.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        let ended = run(Command::new("buildah").args(self.store()).args(arguments));
        assert_eq!(ended.code, 0, "{arguments:?}: {ended:?}");
        ended.stdout.trim().to_owned()
    }

    /// Runs `podman build …`, as the container file writes it, in `folder`. It is buildah's own build: podman contains it.
    fn podman_build(&self, command: &str, folder: &Path) -> Ended {
        let bin = self.path("bin");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = build ] || exit 2\nshift\n\
             exec buildah {} build --isolation chroot --pull-never --signature-policy {} \"$@\"\n",
            self.store().join(" "),
            self.path("policy").display()
        );
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("podman"), script).unwrap();
        fs::set_permissions(bin.join("podman"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        run(Command::new("bash").args(["-o", "pipefail", "-ec", command]).current_dir(folder).env("PATH", path))
    }
}

/// The two commands in the comments of the container file: build and run.
fn commands(file: &str) -> [String; 2] {
    let lines = file.lines().filter_map(|line| line.strip_prefix("#     "));
    let text = lines.collect::<Vec<&str>>().join("\n").replace("\\\n", " ");
    let commands: Vec<String> = text.lines().map(str::to_owned).collect();
    commands.try_into().unwrap_or_else(|found| panic!("{found:?}"))
}

/// What `podman run` is to do.
#[derive(Debug, Default)]
struct RunOptions {
    sysctls: Vec<(String, String)>,
    /// From where, to where, and whether it is read-only.
    volumes: Vec<(String, String, bool)>,
    ports: Vec<String>,
    stop_timeout_s: u64,
    image: String,
}

impl RunOptions {
    /// An option that this test cannot follow fails it.
    fn parse(command: &str) -> Self {
        let words = shlex::split(command).unwrap();
        assert_eq!(words[..2], ["podman", "run"]);
        let mut words = words[2..].iter().map(String::as_str);
        let mut options = Self::default();
        let mut flags = Vec::new();
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap();
            match word {
                "--detach" => {}
                "--read-only" => flags.push(word),
                "--name" => assert_eq!(value(), "provost"),
                "--restart" => assert_eq!(value(), "always"),
                "--cap-drop" | "--security-opt" => flags.push(value()),
                "--stop-timeout" => options.stop_timeout_s = value().parse().unwrap(),
                "--sysctl" => {
                    let (name, value) = value().split_once('=').unwrap();
                    options.sysctls.push((name.to_owned(), value.to_owned()));
                }
                "--publish" => options.ports.push(value().to_owned()),
                "--volume" => {
                    let parts: Vec<&str> = value().split(':').collect();
                    let is_read_only = parts.get(2).inspect(|option| assert_eq!(**option, "ro")).is_some();
                    options.volumes.push((parts[0].to_owned(), parts[1].to_owned(), is_read_only));
                }
                image => {
                    assert!(!image.starts_with('-') && options.image.is_empty(), "{image}");
                    image.clone_into(&mut options.image);
                }
            }
        }
        assert_eq!(flags, ["--read-only", "all", "no-new-privileges"]);
        options
    }
}

/// An image and the folders that a container of it uses.
struct Image {
    buildah: Buildah,
    options: RunOptions,
    /// As the image states them: `Env`, `User`, `Entrypoint`, and so on.
    config: Value,
    /// The folder of named volumes.
    volumes: tempfile::TempDir,
    site: Site,
}

/// The root folder of a container, with its volumes.
struct Container<'a> {
    image: &'a Image,
    root: PathBuf,
}

fn mount(arguments: &[&str]) {
    let mounted = run(Command::new("mount").args(arguments));
    assert_eq!(mounted.code, 0, "{arguments:?}: {mounted:?}");
}

/// The only child of a process.
fn child_of(parent: u32) -> Pid {
    let children = run(Command::new("pgrep").args(["--parent", &parent.to_string()]));
    Pid::from_raw(children.stdout.trim().parse().unwrap()).unwrap()
}

/// The strings of a JSON list.
fn strings(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect()
}

impl Image {
    /// Builds the image with the printed commands, in the unpacked archive. Prepares the folders of the machine that the
    /// commands name.
    fn build(release: &Release) -> Self {
        let buildah = Buildah::with_base();
        let unpacked = release.unpack(&buildah.path("."));
        let file = provost(Path::new("/"), &["print", "containerfile"]);
        assert_eq!((file.code, file.stderr.as_str()), (0, ""));
        let [build, start] = commands(&file.stdout);
        let built = buildah.podman_build(&build, &unpacked);
        assert_eq!(built.code, 0, "{built:?}");
        let options = RunOptions::parse(&start);
        let inspected = buildah.run(&["inspect", "--type", "image", &options.image]);
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        let config = inspected["Docker"]["config"].clone();

        let mut site = Site::with_ote();
        namespace::mount_empty("/srv");
        namespace::mount_overlay("/etc", &buildah.path("."));
        let master = r#"<APPLICATION CONFIG_FILES="site.cfg" LOG_FILE_DIRECTORY=""/>"#;
        site.file("ote/000000000000.cfg", master);
        let script = "mkdir /etc/provost /srv/provost; cp -R constituencies /srv/provost; cp *.pem *.key /etc/provost
             chgrp -R 10001 /etc/provost /srv/provost; chmod -R o-rwx,g+rX /etc/provost /srv/provost";
        let copied = run(Command::new("sh").args(["-ec", script]).current_dir(site.path(".")));
        assert_eq!(copied.code, 0, "{copied:?}");
        site.config["constituencies"] = json!("/srv/provost/constituencies");
        let keys = site.config.as_object_mut().unwrap();
        // Their defaults are those of a container.
        keys.remove("state");
        keys.remove("listen");
        keys.insert("status".to_owned(), json!({}));
        fs::write("/etc/provost/provost.json", site.config.to_string()).unwrap();
        Self { buildah, options, config, volumes: tempfile::tempdir().unwrap(), site }
    }

    /// A container as `podman run` makes it.
    fn container(&self) -> Container<'_> {
        let container = self.buildah.run(&["from", "--pull-never", &self.options.image]);
        let root = PathBuf::from(self.buildah.run(&["mount", &container]));
        let container = Container { image: self, root };
        mount(&["--bind", &container.at("/"), &container.at("/")]);
        mount(&["-o", "remount,bind,ro", &container.at("/")]);
        mount(&["--bind", "/dev", &container.at("/dev")]);
        for (from, to, is_read_only) in &self.options.volumes {
            let to = container.at(to);
            // The path of a named volume is below the folder of volumes.
            let source = self.volumes.path().join(from);
            if !from.starts_with('/') && !source.exists() {
                // A new volume is a copy of the image's folder.
                assert_eq!(run(Command::new("cp").args(["-a", &to]).arg(&source)).code, 0);
            }
            mount(&["--bind", source.to_str().unwrap(), &to]);
            if *is_read_only {
                mount(&["-o", "remount,bind,ro", &to]);
            }
        }
        for (name, value) in &self.options.sysctls {
            fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value).unwrap();
        }
        container
    }
}

impl Container<'_> {
    /// The path outside of `path` in the container.
    fn at(&self, path: &str) -> String {
        self.root.join(path.trim_start_matches('/')).to_str().unwrap().to_owned()
    }

    /// The command that starts it, run by `wrapper`: its program is process 1 of a namespace.
    fn command(&self, wrapper: &[&str]) -> Command {
        let mut words = wrapper.iter().copied().chain(["/usr/bin/unshare"]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(["--pid", "--fork", "--kill-child", &format!("--mount-proc={}", self.at("/proc"))]);
        let config = &self.image.config;
        self.enter(&mut command, &[strings(&config["Entrypoint"]), strings(&config["Cmd"])].concat());
        command
    }

    fn start(&self) -> Running {
        Running::start(self.command(&[]), self.image.options.ports.len())
    }

    /// `podman exec`.
    fn exec(&self, program: &[&str]) -> Ended {
        let mut command = Command::new("/usr/bin/env");
        self.enter(&mut command, program);
        run(&mut command)
    }

    /// Completes `command` so that it runs `program` in the container.
    fn enter(&self, command: &mut Command, program: &[&str]) {
        let config = &self.image.config;
        let (user, group) = config["User"].as_str().unwrap().split_once(':').unwrap();
        command.args(["chroot", &self.at("/"), "setpriv", "--reuid", user, "--regid", group]);
        // The change of the user clears the signal that unshare sets.
        command.args(["--clear-groups", "--no-new-privs", "--pdeathsig=KILL"]);
        command.args(["--inh-caps=-all", "--bounding-set=-all"]).args(program);
        command.env_clear().envs(strings(&config["Env"]).iter().map(|pair| pair.split_once('=').unwrap()));
    }

    fn is_healthy(&self) -> bool {
        let test = strings(&self.image.config["Healthcheck"]["Test"]);
        assert_eq!(test[0], "CMD");
        self.exec(&test[1..]).code == 0
    }
}

/// Whether the tests can run: buildah is here, and the process is root in namespaces of its own.
fn is_inside(test: &str) -> bool {
    let test = format!("container::{test}");
    if !is_here(&test, "buildah") || !namespace::is_inside(&test, &[]) {
        return false;
    }
    let has_users = namespace::has_users();
    if !has_users {
        not_run(&test, "it needs root to change users");
    }
    has_users
}

#[test]
fn container_serves_a_phone_and_drains_as_process_1() {
    let test = "container_serves_a_phone_and_drains_as_process_1";
    let Some(release) = Release::of(test) else { return };
    if !is_inside(test) {
        return;
    }
    let image = Image::build(&release);
    let config = &image.config;
    assert_eq!(config["User"], format!("{USER}:{USER}"));
    assert_eq!(config["ExposedPorts"], json!({ "443/tcp": {} }));
    assert_eq!(config["Volumes"], json!({ "/srv/provost/constituencies": {}, "/var/lib/provost": {} }));
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert_eq!(config["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(image.options.image, format!("provost:{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(image.options.ports, ["443:443"]);
    assert!(image.options.stop_timeout_s > Limits::default().drain_s);

    let container = image.container();
    let server = container.start();
    let pid = child_of(server.pid());
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    for line in ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
        assert!(status.lines().any(|there| there == line), "{line} in {status}");
    }
    let fields = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().split('\t').skip(1);
    assert_eq!(fields("NSpid:").collect::<Vec<_>>()[1], "1");
    assert!(fields("Uid:").all(|id| id == USER.to_string()), "{status}");

    // A whole boot of a phone.
    let site = &image.site;
    fs::write(site.path("ca.pem"), SERVER_CA.certificate.pem()).unwrap();
    FACTORY.device(VVX500).write(&site.path("."), "phone");
    let address: SocketAddr = "127.0.0.1:443".parse().unwrap();
    let (name, resolve) = (format!("ote.{DOMAIN}"), address.to_string());
    let url = format!("https://{name}/");
    let phone = ["phone", "--url", &url, "--mac", VVX500, "--resolve", &resolve, "--ca", "ca.pem"];
    let files = ["--certificate", "phone.pem", "--key", "phone.key"];
    let booted = provost(&site.path("."), &[&phone[..], &files].concat());
    assert_eq!(booted.code, 0, "{booted:?}");
    server.access("the phone", |line| line["mac"] == VVX500 && line["status"] == 200);
    assert!(container.is_healthy());
    let phones = container.exec(&["provost", "phones"]);
    assert!(phones.code == 0 && phones.stdout.contains(VVX500), "{phones:?}");

    // An upload in progress ends before the container does.
    let client = Client::new(address, Some(&name)).with_identity(&FACTORY.device(VVX500));
    let mut upload = client.connect().unwrap();
    let head = format!("PUT /{VVX500}-now.log HTTP/1.1\r\nHost: {name}\r\nContent-Length: 2\r\n\r\n1");
    upload.send(head.as_bytes()).unwrap();
    let state = image.volumes.path().join("provost-state");
    eventually("the upload", || fs::read_dir(state.join("uploads/.incoming")).ok()?.next().map(drop));
    kill_process(pid, Signal::TERM).unwrap();
    server.says("SIGTERM");
    upload.send(b"2").unwrap();
    assert_eq!(upload.response("PUT").unwrap().status, 201);
    assert_eq!(server.wait().code(), Some(0));
    assert!(!container.is_healthy());

    // A new container with the same volume has the phone's upload. The volume belongs to the image's user alone.
    let folder = fs::metadata(&state).unwrap();
    assert_eq!((folder.uid(), folder.gid(), folder.mode() & 0o777), (USER, USER, 0o700));
    let container = image.container();
    let _server = container.start();
    let upload = container.exec(&["provost", "uploads", "cat", VVX500, &format!("{VVX500}-now.log")]);
    assert_eq!((upload.code, upload.stdout.trim_end()), (0, "12"), "{upload:?}");
}

#[test]
fn container_names_what_its_user_lacks() {
    let test = "container_names_what_its_user_lacks";
    let Some(release) = Release::of(test) else { return };
    if !is_inside(test) {
        return;
    }
    let image = Image::build(&release);
    let ends = |code: i32, reason: &str| {
        let ended = run(&mut image.container().command(&["/usr/bin/timeout", "60"]));
        assert!(ended.code == code && ended.stderr.contains(reason), "{reason}: {ended:?}");
    };
    // A folder of root in place of a new volume.
    let state = image.volumes.path().join("provost-state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    ends(1, "cannot use the state directory /var/lib/provost/lock: Permission denied");
    chown(&state, Some(USER), Some(USER)).unwrap();
    // Never local mode.
    fs::remove_file("/etc/provost/provost.json").unwrap();
    ends(2, "/etc/provost/provost.json: cannot be read");
}

#[test]
fn image_of_another_version_is_not_built() {
    let test = "image_of_another_version_is_not_built";
    if !is_inside(test) {
        return;
    }
    let buildah = Buildah::with_base();
    let file = provost(Path::new("/"), &["print", "containerfile"]).stdout;
    let folder = buildah.path("other");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("Containerfile"), &file).unwrap();
    let version = provost(Path::new("/"), &["--version"]).stdout;
    for (printed, is_built) in [(version.trim_end(), true), ("provost 0.0.1", false)] {
        fs::write(folder.join("provost"), format!("#!/bin/sh\necho '{printed}'\n")).unwrap();
        fs::set_permissions(folder.join("provost"), fs::Permissions::from_mode(0o755)).unwrap();
        let built = buildah.podman_build("podman build --tag other .", &folder);
        assert_eq!(built.code == 0, is_built, "{printed}: {built:?}");
        assert!(built.stdout.contains(&format!("{printed}\n")), "{built:?}");
    }
}
