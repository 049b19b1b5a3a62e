// The library for the JVM. Its tests run with Maven, with the native library for this machine (test.sh).
plugins {
    alias(libs.plugins.kotlin.jvm)
    alias(libs.plugins.kotlin.serialization)
    `maven-publish`
}

group = "dev.dollop"
version = "0.1.0"

kotlin {
    explicitApi()
    jvmToolchain(17)
    sourceSets["test"].kotlin.setSrcDirs(emptyList<String>())
}

dependencies {
    api(libs.coroutines.core)
    api(libs.serialization.json)
}

publishing {
    publications {
        create<MavenPublication>("core") {
            artifactId = "dollop-core"
            from(components["java"])
        }
    }
}
