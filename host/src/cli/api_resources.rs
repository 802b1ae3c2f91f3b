//! `wasmk api-resources`: the kinds the server has.

use anyhow::Result;

use super::{Context, Exit, api::Api, resources::Resources};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only resources of this group
    #[arg(long, value_name = "GROUP")]
    api_group: Option<String>,
    /// Only namespaced (true) or cluster-wide (false) resources
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    namespaced: Option<bool>,
    /// `name` for names only, `wide` for verbs and categories too
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    /// No header line
    #[arg(long)]
    no_headers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Format {
    Name,
    Wide,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    let mut rows = Vec::new();
    if !args.no_headers && args.output != Some(Format::Name) {
        let mut header = vec!["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"];
        if args.output == Some(Format::Wide) {
            header.extend(["VERBS", "CATEGORIES"]);
        }
        rows.push(header.into_iter().map(String::from).collect());
    }
    let wanted = resources.iter().filter(|r| {
        r.preferred
            && args.api_group.as_ref().is_none_or(|g| &r.group == g)
            && args.namespaced.is_none_or(|n| r.namespaced == n)
    });
    for resource in wanted {
        if args.output == Some(Format::Name) {
            rows.push(vec![resource.qualified()]);
            continue;
        }
        let mut row = vec![
            resource.plural.clone(),
            resource.short_names.join(","),
            resource.api_version(),
            resource.namespaced.to_string(),
            resource.kind.clone(),
        ];
        if args.output == Some(Format::Wide) {
            row.extend([resource.verbs.join(","), resource.categories.join(",")]);
        }
        rows.push(row);
    }
    cx.out.columns(&rows);
    Ok(Exit::Done)
}
