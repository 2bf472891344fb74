//! For tests: what the machine's C headers say.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// The values of expressions in C, after these lines of includes. None, and a word why, where the machine has no C
/// compiler, or not the headers (Debian: gcc, linux-libc-dev, libxen-dev).
pub(crate) fn values(includes: &str, expressions: &[&str]) -> Option<Vec<u64>> {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("headers-{}-{call}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let program = folder.join("program");
    let prints: String = expressions
        .iter()
        .map(|expression| format!("printf(\"%llu\\n\", (unsigned long long)({expression}));\n"))
        .collect();
    let source = format!(
        "#include <stddef.h>\n#include <stdio.h>\n{includes}\nint main(void) {{\n{prints}return 0; }}\n"
    );
    let compiler =
        Command::new("cc").args(["-x", "c", "-", "-o"]).arg(&program).stdin(Stdio::piped()).spawn();
    let compiled = compiler.map(|mut child| {
        child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
        child.wait().unwrap().success()
    });
    let output = matches!(compiled, Ok(true)).then(|| Command::new(&program).output().unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
    let Some(output) = output else {
        assert!(std::env::var_os("CI").is_none(), "no C compiler, or not its headers");
        eprintln!("not compared with the headers: no C compiler, or not its headers");
        return None;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.lines().map(|line| line.parse().unwrap()).collect())
}
