//! What kernels a .cu file has, and what their parameters are called.

/// A kernel's name and its parameters' names.
#[derive(Debug, PartialEq)]
pub struct Signature {
    pub name: String,
    pub parameters: Vec<String>,
}

/// All `__global__ void` functions of a source text, in its order.
pub fn kernels(text: &str) -> Vec<Signature> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    code.split("__global__").skip(1).filter_map(signature).collect()
}

/// Reads `void __launch_bounds__(…) name(type a, type b)`.
fn signature(after_global: &str) -> Option<Signature> {
    let mut rest = after_global.trim_start().strip_prefix("void")?.trim_start();
    if let Some(bounds) = rest.strip_prefix("__launch_bounds__") {
        rest = parenthesised(bounds.trim_start())?.1.trim_start();
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    let (name, rest) = rest.split_at(end);
    let (list, _) = parenthesised(rest.trim_start())?;
    let parameters = list.split(',').map(str::trim).filter(|parameter| !parameter.is_empty()).map(|parameter| {
        let last = parameter.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next();
        last.unwrap_or(parameter).to_owned()
    });
    Some(Signature { name: name.to_owned(), parameters: parameters.collect() })
}

/// What the parentheses at the start of `text` enclose, and what follows them.
fn parenthesised(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return text.starts_with('(').then(|| (&text[1..at], &text[at + 1..]));
        }
    }
    None
}

#[test]
fn reads_signatures() {
    let text = "// __global__ void not_this(int a)\nextern \"C\" __global__ void __launch_bounds__(f(2) * 4, 2)\n    \
                two(const bf16* __restrict__ x, // input\n Rows rows) {}\n__global__ void none() {}";
    let found: Vec<_> = kernels(text).into_iter().map(|kernel| (kernel.name, kernel.parameters)).collect();
    assert_eq!(found, [("two".into(), vec!["x".to_owned(), "rows".to_owned()]), ("none".into(), vec![])]);
}
