//! `CronJob`.

use serde_json::Value;
use wasmk_api::{Object, Schedule, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, status};
use crate::pod::defaults;
use crate::table::{age, or, since, yes_no};
use crate::value::{flag, list, map_mut, or_null, set_default, some_map, text, text_at};
use crate::workloads::{job_validate, not_negative};
use crate::{Column, Kind, columns, pod_warnings, selector};

/// Jobs are named after their cron job and its schedule's time, eleven characters more.
const MAX_NAME: usize = 52;

pub(crate) struct CronJob;

impl Kind for CronJob {
    fn set_defaults(&self, obj: &mut Object) {
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        set_default(spec, "concurrencyPolicy", "Allow");
        set_default(spec, "suspend", false);
        set_default(spec, "successfulJobsHistoryLimit", 3);
        set_default(spec, "failedJobsHistoryLimit", 1);
        defaults::template(map_mut(map_mut(spec, "jobTemplate"), "spec"), "template");
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        check_spec(spec(obj), None, &At::new("spec"), errors);
        if obj.name().len() > MAX_NAME {
            let metadata = At::new("metadata");
            errors.invalid_text(&metadata.field("name"), obj.name(), "must be no more than 52 characters");
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        check_spec(spec(new), Some(spec(old)), &At::new("spec"), errors);
    }

    fn warnings(&self, obj: &Object, old: Option<&Object>) -> Vec<String> {
        let mut warnings = pod_warnings::of_template(obj, old, &["spec", "jobTemplate", "spec", "template"]);
        if obj.name().len() > 63 - 11 {
            warnings.push("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [must be no more than 63 characters]".into());
        }
        if text(spec(obj), "schedule").contains("TZ") {
            warnings.push("CRON_TZ or TZ used in schedule \"".to_owned() + text(spec(obj), "schedule") + "\" is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details");
        }
        warnings
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("batch/CronJob")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (spec(obj), status(obj));
        let last = match text(status, "lastScheduleTime") {
            "" => "<none>".into(),
            time => since(time, now),
        };
        let (names, images) =
            crate::table::containers(in_spec(obj, &["jobTemplate", "spec", "template", "spec"]));
        vec![
            obj.name().into(),
            text(spec, "schedule").into(),
            or(text(spec, "timeZone"), "<none>").into(),
            yes_no(flag(spec, "suspend")),
            list(status, "active").len().into(),
            last.into(),
            age(obj, now),
            names,
            images,
            selector::shown(in_spec(obj, &["jobTemplate", "spec", "selector"])).into(),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_spec(spec: &Value, old: Option<&Value>, at: &At<'_>, errors: &mut Errors) {
    match text(spec, "schedule") {
        "" => errors.required(&at.field("schedule"), ""),
        schedule => check_schedule(schedule, spec, old, at, errors),
    }
    not_negative(spec, &["startingDeadlineSeconds"], at, errors);
    if let Some(zone) = text_at(spec, "timeZone") {
        check_zone(zone, &at.field("timeZone"), errors);
    }
    match text(spec, "concurrencyPolicy") {
        "" => errors.required(&at.field("concurrencyPolicy"), ""),
        "Allow" | "Forbid" | "Replace" => {}
        other => errors.unsupported(&at.field("concurrencyPolicy"), other, &["Allow", "Forbid", "Replace"]),
    }
    let template = at.field("jobTemplate");
    job_validate::template(or_null(or_null(spec, "jobTemplate"), "spec"), &template.field("spec"), errors);
    not_negative(spec, &["successfulJobsHistoryLimit", "failedJobsHistoryLimit"], at, errors);
}

fn check_schedule(schedule: &str, spec: &Value, old: Option<&Value>, at: &At<'_>, errors: &mut Errors) {
    let place = at.field("schedule");
    if let Err(why) = Schedule::parse(schedule) {
        errors.invalid_text(&place, schedule, &why);
    }
    if !schedule.contains("TZ") {
        return;
    }
    if text_at(spec, "timeZone").is_some() {
        let why = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
        errors.invalid_text(&place, schedule, why);
    } else if old.is_none_or(|old| !text(old, "schedule").contains("TZ")) {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.invalid_text(&place, schedule, why);
    }
}

fn check_zone(zone: &str, at: &At<'_>, errors: &mut Errors) {
    if zone.is_empty() {
        errors.invalid_text(at, zone, "timeZone must be nil or non-empty string");
    } else if zone.eq_ignore_ascii_case("local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.invalid_text(at, zone, why);
    } else if jiff::tz::TimeZone::get(zone).is_err() && !jiff::tz::db().is_definitively_empty() {
        errors.invalid_text(at, zone, &format!("unknown time zone {zone}"));
    }
}
