//! `handbert train` and `handbert eval` as a shell sees them.

mod support {
    pub mod training;
}

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::training::{LABELS, config, texts, tokenizer, weights};

/// A directory with postings, a tokenizer and a config.json.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(postings: usize) -> Self {
        let bench = Bench { dir: tempfile::tempdir().expect("a directory") };
        let rows = texts(postings, 1).into_iter().map(|(text, label)| {
            let row = serde_json::json!({ "text": text, "label": LABELS[label as usize] });
            format!("{row}\n")
        });
        bench.write("postings.jsonl", &rows.collect::<String>());
        let tokenizer = tokenizer();
        std::fs::create_dir(bench.path("tokenizer")).expect("made");
        tokenizer.save(&bench.path("tokenizer")).expect("saved");
        let config = config(tokenizer.vocab_size()).to_json("DistilBertForMaskedLM");
        bench.write("config.json", &config.to_string());
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handbert"));
        command.current_dir(self.dir.path()).args(arguments.split_whitespace()).args(["--threads", "2"]);
        command.stdin(Stdio::null()).env("HANDBERT_DEVICE", "cpu").env_remove("RUST_LOG");
        command
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().expect("started")
    }

    /// Standard output of a command that is to do its work.
    fn ok(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{arguments}\n{out}\n{err}");
        out
    }

    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{arguments} --json"))).expect("one JSON object")
    }

    /// Standard error of a command that is to do nothing.
    fn refused(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}\n{err}");
        assert!(!err.contains("panicked"), "{err}");
        err
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// From scratch, with small batches.
const MLM: &str = "train mlm --config config.json --tokenizer tokenizer --data postings.jsonl --batch-tokens 512 \
    --max-length 48 --learning-rate 1e-3 --validation-split-percentage 20";

#[test]
fn from_files_to_a_classifier_and_back_from_run_toml() {
    let bench = Bench::new(150);
    let mlm = bench.json(&format!("{MLM} --out mlm --num-train-epochs 2"));
    for key in ["steps", "tokens", "seconds", "tokens_per_second", "loss", "evaluation", "device"] {
        assert!(!mlm[key].is_null(), "{key} in {mlm}");
    }
    let [before, after] =
        ["evaluation_before", "evaluation"].map(|when| mlm[when]["perplexity"].as_f64().expect("given"));
    assert!(after < before, "{mlm}");

    assert!(std::fs::read_to_string(bench.path("mlm/report.html")).expect("a report").contains("<svg"));

    // What the last evaluation said is what `eval` says: the same split, the same masks.
    let eval = bench.json("eval mlm --model mlm --data postings.jsonl");
    for key in ["loss", "perplexity", "masked_tokens", "accuracy"] {
        assert!(eval[key].is_number() && eval[key] == mlm["evaluation"][key], "{key}: {eval} {mlm}");
    }
    assert!(eval["perplexity_unigram"].is_number());

    let trained = bench.json(
        "train classifier --model mlm --data postings.jsonl --out classifier --max-steps 30 --batch-tokens 512 \
         --max-length 48 --learning-rate 2e-3 --validation-split-percentage 20 --positive-label remote",
    );
    assert!(trained["evaluation"]["curves"].is_null(), "points are for pictures");
    let eval = bench.json("eval classifier --model classifier --data postings.jsonl");
    for key in ["rows", "accuracy", "f1", "macro_f1", "roc_auc", "average_precision", "threshold"] {
        assert!(eval[key].is_number() && eval[key] == trained["evaluation"][key], "{key}: {eval} {trained}");
    }
    assert!(eval["roc_auc"].as_f64().expect("a number") > 0.9, "{eval}");
    let all = bench.json("eval classifier --model classifier --data postings.jsonl --subset all");
    assert_eq!(all["rows"], 150);
    assert!(bench.ok("eval classifier --model classifier --data postings.jsonl").contains("ROC AUC"));

    // run.toml repeats both, bit for bit.
    bench.ok("train mlm --config-file mlm/run.toml --out mlm2");
    assert!(weights(&bench.path("mlm")) == weights(&bench.path("mlm2")));
    bench.ok("train classifier --config-file classifier/run.toml --out classifier2");
    assert!(weights(&bench.path("classifier")) == weights(&bench.path("classifier2")));
    bench.ok("train classifier --config-file classifier/run.toml --out classifier3 --seed 1");
    assert!(weights(&bench.path("classifier")) != weights(&bench.path("classifier3")));
}

#[test]
fn a_report_compares_with_another_run() {
    let bench = Bench::new(100);
    let train = |more: &str| format!("{MLM} --max-steps 4 --eval-steps 2 --logging-steps 1 {more}");
    bench.ok(&train("--out slow"));
    bench.ok(&train("--out fast --learning-rate 3e-3 --compare slow").replacen("--learning-rate 1e-3 ", "", 1));
    let report = |out: &str| std::fs::read_to_string(bench.path(out).join("report.html")).expect("a report");
    assert!(!report("slow").contains("Compared with"));
    let fast = report("fast");
    for part in ["Compared with slow", ">slow</span>", "slow, held out", "0.003, there 0.001"] {
        assert!(fast.contains(part), "{part}");
    }
    assert!(!fast.contains("400.0, there"), "what is alike is not listed");

    let refused = |run: &str| bench.refused(&train(&format!("--out other --compare {run}")));
    assert!(refused("nowhere").contains("nowhere: holds no metrics.jsonl with a run to compare with"));
    bench.ok("train classifier --model slow --data postings.jsonl --out classes --max-steps 2 --max-length 48");
    assert!(refused("classes").contains("classes: is a run of the other kind of training"));
    assert!(!bench.path("other").join("run.toml").exists());
}

#[test]
fn auto_is_the_default_on_a_cpu_and_no_graph_changes_nothing() {
    let bench = Bench::new(60);
    let train =
        |tokens: &str| format!("{} --max-steps 2 --eval-strategy no", MLM.replace("--batch-tokens 512", tokens));
    bench.ok(&format!("{} --out default", train("")));
    bench.ok(&format!("{} --out auto", train("--batch-tokens auto --no-graph")));
    bench.write("auto.toml", "batch_tokens = \"auto\"\n");
    bench.ok(&format!("{} --out file", train("--config-file auto.toml")));
    let settings = |out: &str| std::fs::read_to_string(bench.path(out).join("run.toml")).expect("settings");
    assert!(settings("default").contains("batch_tokens = 4096"), "{}", settings("default"));
    for out in ["auto", "file"] {
        assert_eq!(settings(out), settings("default"));
        assert!(weights(&bench.path(out)) == weights(&bench.path("default")), "{out}");
    }
    // It is no property of a run.
    bench.write("graph.toml", "no_graph = true\n");
    assert!(bench.refused(&format!("{} --out x", train("--config-file graph.toml"))).contains("no_graph"));
    bench.ok("eval mlm --model auto --data postings.jsonl --batch-tokens auto");
}

/// Waits until a run has logged a step.
fn wait_for_a_step(out: &Path) {
    let began = Instant::now();
    while !std::fs::read_to_string(out.join("metrics.jsonl")).is_ok_and(|text| text.contains("grad_norm")) {
        assert!(began.elapsed() < Duration::from_secs(60), "no step in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Begins a run anew and sends it a signal. The command that it says to go on by; `None` where it came to its end.
#[cfg(unix)]
fn interrupted(bench: &Bench, plan: &str, signal: &str, out: &str) -> Option<String> {
    // What is there of a run before is not to be waited for.
    std::fs::remove_dir_all(bench.path(out)).ok();
    let mut command = bench.command(&format!("{plan} --device cpu"));
    let child = command.args(["--out", out]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("started");
    wait_for_a_step(&bench.path(out));
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("sent");
    assert!(sent.success());
    let output = child.wait_with_output().expect("ended");
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}\n{}", text(&output.stderr));
    said.lines().find(|line| line.contains("--resume")).map(|line| line.trim().to_owned())
}

#[cfg(unix)]
#[test]
fn a_signal_saves_and_says_how_to_go_on() {
    let bench = Bench::new(150);
    let plan = format!("{MLM} --max-steps 120 --logging-steps 1 --eval-strategy no");
    bench.ok(&format!("{plan} --out whole"));
    for (signal, out) in [("-INT", "interrupted"), ("-TERM", "it's terminated")] {
        // On a busy machine a run may be done before its signal comes.
        let interrupted = (0..5).find_map(|_| interrupted(&bench, &plan, signal, out));
        let resume = interrupted.unwrap_or_else(|| panic!("{signal} changes nothing"));
        assert!(resume.ends_with("--resume --device cpu --threads 2"), "{resume}");
        // As it stands, in a shell that finds the program.
        let programs = Path::new(env!("CARGO_BIN_EXE_handbert")).parent().expect("a directory");
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut again = Command::new("sh");
        again.args(["-c", &resume]).current_dir(bench.dir.path()).env("PATH", path).env_remove("RUST_LOG");
        let resumed = again.output().expect("started");
        assert_eq!(resumed.status.code(), Some(0), "{}", text(&resumed.stderr));
        assert!(text(&resumed.stdout).contains("120 steps"), "{}", text(&resumed.stdout));
        assert!(weights(&bench.path(out)) == weights(&bench.path("whole")), "{signal}");
    }
}

#[cfg(unix)]
#[test]
fn a_disk_that_takes_no_more_names_the_file_and_spares_the_checkpoint() {
    let bench = Bench::new(60);
    bench.ok(&format!("{MLM} --out run --max-steps 4 --save-steps 2 --eval-strategy no"));
    std::fs::remove_dir_all(bench.path("run/checkpoint-4")).expect("removed");
    // A limit on file sizes stands in for the full disk: the same write fails, with another number.
    let handbert = env!("CARGO_BIN_EXE_handbert");
    let script = format!("trap '' XFSZ; ulimit -f 100; exec {handbert} train mlm --out run --resume --threads 2");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(bench.dir.path()).env("HANDBERT_DEVICE", "cpu").env_remove("RUST_LOG");
    let output = command.output().expect("started");
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    for part in
        [".checkpoint-4.partial/model.safetensors", "too large", "checkpoint-2 is whole", "go on from it with --resume"]
    {
        assert!(err.contains(part), "{part}: {err}");
    }
    assert!(!bench.path("run/.checkpoint-4.partial").exists(), "what was written is gone");
    bench.ok("train mlm --out run --resume");
    assert!(bench.path("run/checkpoint-4").exists());
}

#[test]
fn refusals_say_what_and_what_to_do() {
    let bench = Bench::new(40);
    bench.ok(&format!("{MLM} --out run --max-steps 1 --eval-strategy no"));
    bench.write("unknown.toml", "learning_rat = 1\n");
    bench.write("wrong.toml", "max_steps = \"many\"\n");
    bench.write("labels.jsonl", "{\"text\": \"a posting\", \"label\": \"remote\"}\n");
    std::fs::create_dir(bench.path("empty")).expect("made");
    let data = "--data postings.jsonl";
    let cases = [
        (format!("train mlm {data} --out a"), "--model is missing"),
        (format!("train mlm --model run {data}"), "--out is missing"),
        ("train mlm --model run --out a".into(), "--data names no token set and no file"),
        ("train mlm --model run --data missing.jsonl --out a".into(), "missing.jsonl"),
        (format!("train mlm --model run {data} --out run"), "go on with --resume, start over with --overwrite"),
        (format!("train mlm --model empty {data} --out a"), "config.json"),
        (format!("train mlm --model run {data} --out a --config-file unknown.toml"), "did you mean \"learning_rate\"?"),
        (format!("train mlm --model run {data} --out a --config-file wrong.toml"), "wrong.toml: max_steps"),
        (format!("train mlm --model run {data} --out a --batch-tokens 5"), "--batch-tokens 5"),
        (
            format!("train mlm --model run {data} --out a --adam-beta2 0.99999999"),
            "--adam-beta2 is not from 0 to below 1",
        ),
        (format!("train mlm --model run {data} --out a --text-columns body"), "body"),
        (format!("train mlm --model run {data} --out a --tokenizer tokenizer"), "--tokenizer is for --config"),
        ("train mlm --out empty --resume".into(), "there is no run to resume; leave --resume out"),
        ("train mlm --out run --resume --learning-rate 0.5".into(), "--learning-rate was 0.001 and is now 0.5"),
        ("train mlm --out run --resume --data labels.jsonl".into(), "--data"),
        (format!("train classifier --model run {data} --out a --label-column kind"), "kind"),
        ("train classifier --model run --data run/tokens --out a".into(), "has no labels"),
        ("train classifier --model run --data labels.jsonl --out a".into(), "at least two"),
        (format!("eval classifier --model run {data}"), "DistilBertForMaskedLM"),
        (format!("eval mlm --model run {data} --mlm-probability 1.5"), "--mlm-probability 1.5"),
        (
            format!("train mlm --model run {data} --out run --overwrite --validation-split-percentage 0.0001"),
            "raise --validation-split-percentage",
        ),
    ];
    for (arguments, named) in cases {
        let error = bench.refused(&arguments);
        assert!(error.contains(named), "{arguments}: {error}");
    }
    assert!(!bench.path("a/run.toml").exists());
    assert!(bench.path("run/model.safetensors").exists(), "a run that cannot begin overwrites nothing");
}

#[test]
fn a_loss_out_of_hand_is_no_damage_to_resume_from() {
    let bench = Bench::new(60);
    let steep = MLM.replace("--learning-rate 1e-3", "--learning-rate 50 --max-grad-norm 0");
    let run = bench.json(&format!("{steep} --out run --max-steps 12 --eval-steps 6"));
    assert!(run["evaluation"]["perplexity"].is_null(), "exp of this loss overflows: {run}");
    std::fs::remove_dir_all(bench.path("run/checkpoint-12")).expect("removed");
    let again = bench.json("train mlm --out run --resume");
    assert_eq!(again["evaluation"], run["evaluation"]);
}

#[test]
fn padding_and_vocabulary_of_a_model_from_scratch_are_the_tokenizers() {
    let bench = Bench::new(40);
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(bench.path("config.json")).expect("read")).expect("JSON");
    config["vocab_size"] = 8192.into();
    config["pad_token_id"] = 5000.into();
    bench.write("config.json", &config.to_string());
    bench.ok(&format!("{MLM} --out run --max-steps 1 --eval-strategy no"));
    let saved: Value =
        serde_json::from_slice(&std::fs::read(bench.path("run/config.json")).expect("read")).expect("JSON");
    assert_eq!(saved["pad_token_id"], tokenizer().special().pad);
    assert_eq!(saved["vocab_size"], tokenizer().vocab_size());
}

#[test]
fn bad_rows_are_counted_and_named_and_the_rest_is_used() {
    let bench = Bench::new(60);
    bench.ok(&format!("{MLM} --out mlm --max-steps 1 --eval-strategy no"));
    let mut rows = std::fs::read_to_string(bench.path("postings.jsonl")).expect("read");
    rows.push_str("{\"text\": \"half a row\n{\"text\": \"fine\", \"label\": \"hybrid\"}\n");
    bench.write("postings.jsonl", &rows);
    let classifier = "train classifier --model mlm --data postings.jsonl --out classifier --labels in_person,remote \
                      --max-steps 1 --eval-strategy no --batch-tokens 512 --max-length 48";
    let output = bench.run(classifier);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("postings.jsonl:61") && err.contains("hybrid"), "{err}");
}

#[test]
fn columns_that_a_token_set_was_not_made_of_are_refused() {
    let bench = Bench::new(60);
    bench.ok("tokenize postings.jsonl --tokenizer tokenizer --label-column label --out set");
    let train = |more: &str| format!("{} --out run {more}", MLM.replace("postings.jsonl", "set"));
    let group = bench.refused(&train("--max-steps 1 --group-column label"));
    assert!(group.contains("set: --group-column label, but this token set was made with none"), "{group}");
    let text = bench.refused(&train("--max-steps 1 --text-columns label"));
    assert!(text.contains("was made with --text-columns text"), "{text}");
    assert!(!bench.path("run/run.toml").exists());
    bench.ok(&train("--max-steps 1 --text-columns text --eval-strategy no"));
    let label = bench.refused("train classifier --model run --data set --out classes --label-column text");
    assert!(label.contains("--label-column text, but this token set was made with --label-column label"), "{label}");
    let eval = bench.refused("eval mlm --model run --data set --group-column label");
    assert!(eval.contains("handbert tokenize FILES… --group-column label"), "{eval}");
}

#[test]
fn a_token_set_of_another_vocabulary_is_refused() {
    let bench = Bench::new(40);
    bench.ok(&format!("{MLM} --out run --max-steps 1 --eval-strategy no"));
    let other =
        handbert::data::tokenizer::Tokenizer::train(["entirely other words".to_owned()].into_iter().map(Ok), 100);
    let other = other.expect("trained");
    let about = handbert::data::token_set::About { text_columns: vec!["text".into()], ..Default::default() };
    let set = bench.path("other");
    let mut writer = handbert::data::token_set::TokenSetWriter::create(&set, &other, about).expect("created");
    writer.push(&other.encode("other words").expect("encoded"), -1, 1).expect("pushed");
    writer.finish().expect("finished");
    let error = bench.refused("train mlm --model run --data other --out a");
    assert!(error.contains("made with another tokenizer") && error.contains("--tokenizer run"), "{error}");
    let error = bench.refused("train mlm --out run --resume --data other");
    assert!(error.contains("made with another tokenizer"), "{error}");
    let error = bench.refused("eval mlm --model run --data other");
    assert!(error.contains("made with another tokenizer"), "{error}");
}
