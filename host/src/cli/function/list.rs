//! `wasmk fn list`: functions with their URLs.

use anyhow::Result;

use super::{
    super::{
        Context, Exit,
        api::{Api, TABLE},
        table::Table,
    },
    path,
};

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// Over all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Json,
}

pub(in super::super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let path = match args.all_namespaces {
        true => "/apis/serving.knative.dev/v1/services".to_string(),
        false => path(api.default_namespace(), ""),
    };
    if args.output.is_some() {
        cx.out.line(serde_json::to_string_pretty(&api.get(&path).await?)?);
        return Ok(Exit::Done);
    }
    let mut table = Table::new(false, args.all_namespaces);
    table.add(&api.get_as(&path, TABLE).await?)?;
    if table.is_empty() {
        cx.out.note("no functions yet; `wasmk fn new NAME` makes one");
        return Ok(Exit::Done);
    }
    cx.out.text(&table.text(true));
    Ok(Exit::Done)
}
